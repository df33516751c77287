"""launcher=processes: fresh processes of this machine, each kept for job after job."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from metalearn.sweep.executor import Executor, Job
from metalearn.sweep.executors.options import ProcessesOptions
from metalearn.sweep.executors.places import Place, places
from metalearn.sweep.executors.task import Task, death, perform, task_of
from metalearn.work import Outcome
from metalearn.workers import Worker


@dataclass(eq=False)
class Seat:
    """A place with its process; CUDA keeps a process to the GPUs that it saw first."""

    place: Place
    worker: Worker | None = None
    job: Job | None = None
    since: float = 0.0


class Processes(Executor):
    """A spawned process for each place; the death of one costs its job alone."""

    def __init__(
        self, options: ProcessesOptions, folder: Path, work: Callable[[Sequence[str]], Outcome]
    ) -> None:  # fmt: skip
        del folder  # nothing of its own to keep
        self._options, self._work = options, work
        self._seats = [Seat(place) for place in places(options)]

    @property
    def width(self) -> int:
        """Jobs at a time."""
        return len(self._seats)

    def start(self, job: Job) -> None:
        """Give the job to an idle process, or a new one."""
        seat = next(seat for seat in self._seats if seat.job is None)
        if seat.worker is None or not seat.worker.process.is_alive():
            seat.worker = Worker(perform_at)
        task = task_of(
            self._work, job.overrides, self._options.cpus, self._options.minutes, seat.place.devices
        )
        seat.worker.give((task, seat.place.cores))
        seat.job, seat.since = job, time.monotonic()

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait for jobs; a process that died over one is replaced when the next begins."""
        busy = {seat.worker.channel: seat for seat in self._seats if seat.worker and seat.job}
        for channel in connection.wait(list(busy)):
            seat = busy[channel]  # type: ignore[index]
            job, worker = seat.job, seat.worker
            assert job is not None and worker is not None  # noqa: PT018
            outcome = worker.take()
            seat.job = None
            if outcome is None:
                seat.worker = None
                seconds = time.monotonic() - seat.since
                outcome = Outcome("failed", death(worker.process.exitcode, job.folder), seconds)
            yield job, outcome

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            if seat.worker and seat.job:
                seat.worker.process.terminate()
        for seat in self._seats:
            if seat.worker:
                seat.worker.channel.close()
                seat.worker.process.join()


def perform_at(task_and_cores: tuple[Task, tuple[int, ...]]) -> Outcome:
    """`perform` on cores of its own; () leaves all."""
    task, cores = task_and_cores
    if cores:
        os.sched_setaffinity(0, cores)
    return perform(task)
