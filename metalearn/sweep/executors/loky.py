"""launcher=joblib: workers of joblib's loky backend on this machine."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.sweep.executor import Executor, Job
from metalearn.sweep.executors.options import JoblibOptions
from metalearn.sweep.executors.places import Place, places
from metalearn.sweep.executors.task import Task, death, perform, task_of
from metalearn.work import Outcome
from metalearn.workers import born_deaf, end_with_parent


@dataclass(eq=False)
class Seat:
    """A place with a loky executor of one worker: a broken one takes no other job with it."""

    place: Place
    executor: Any = None
    job: Job | None = None
    since: float = 0.0


class Loky(Executor):
    """One loky worker for each place."""

    def __init__(
        self, options: JoblibOptions, folder: Path, work: Callable[[Sequence[str]], Outcome]
    ) -> None:  # fmt: skip
        del folder
        self._options, self._work = options, work
        self._seats = [Seat(place) for place in places(options)]
        self._busy: dict[Future[Outcome], Seat] = {}

    @property
    def width(self) -> int:
        """Jobs at a time."""
        return len(self._seats)

    def start(self, job: Job) -> None:
        """Submit the job to a free seat's executor."""
        from joblib.externals.loky import ProcessPoolExecutor
        from joblib.externals.loky.backend import resource_tracker

        seat = next(seat for seat in self._seats if seat.job is None)
        if seat.executor is None:
            seat.executor = ProcessPoolExecutor(1, initializer=end_with_parent, initargs=(os.getpid(),))
        task = task_of(
            self._work, job.overrides, self._options.cpus, self._options.minutes, seat.place.devices
        )
        seat.job, seat.since = job, time.monotonic()
        resource_tracker.ensure_running()  # as `born_deaf` says of the other
        with born_deaf():
            self._busy[seat.executor.submit(perform_for, task, os.getpid())] = seat

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait for jobs; the executor of a killed worker is replaced when the next begins."""
        for future in wait(list(self._busy), return_when=FIRST_COMPLETED).done:
            seat = self._busy.pop(future)
            assert seat.job is not None
            job, seat.job = seat.job, None
            error = future.exception()
            if error is None:
                yield job, future.result()
                continue
            seat.executor.shutdown(wait=True, kill_workers=True)
            seat.executor = None
            yield job, Outcome("failed", _said(error, job.folder), time.monotonic() - seat.since)

    def __enter__(self) -> "Loky":
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._busy.values():
            for process in list(seat.executor._processes.values()):
                os.kill(process.pid, signal.SIGTERM)
        for seat in self._seats:
            if seat.executor is not None:
                seat.executor.shutdown(wait=True)


def perform_for(task: Task, parent: int) -> Outcome:
    """`perform`, and the end of this process where its parent has gone meanwhile: loky would wait for it."""
    outcome = perform(task)
    if os.getppid() != parent:
        os._exit(1)
    return outcome


def _said(error: BaseException, folder: Path) -> str:
    """One line for loky's page: the signal that killed the worker, or the error itself."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if not isinstance(error, TerminatedWorkerError):
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    killed = [-number for number in signal.Signals if f"{number.name}(-{int(number)})" in str(error)]
    return death(killed[0] if killed else None, folder)
