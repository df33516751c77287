"""launcher=slurm: jobs of a cluster by submitit, or by its local stand-ins."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.registry import UserError
from metalearn.sweep.executor import Executor, Job
from metalearn.sweep.executors.options import SlurmOptions
from metalearn.sweep.executors.places import cores, portions, visible_devices
from metalearn.sweep.executors.preemption import Preemptible
from metalearn.sweep.executors.task import task_of
from metalearn.work import Outcome
from metalearn.workers import born_deaf

SECONDS_BETWEEN_LOOKS = {"slurm": 2.0, "local": 0.1, "debug": 0.0}
UNDER_WAY = ("PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING", "SUSPENDED")


class Submitted(NamedTuple):
    """A job at the cluster."""

    job: Job
    remote: Any  # submitit's job
    device: str | None
    since: float


class SlurmJobs(Executor):
    """Jobs that outlive this process: one that a killed sweep left in the queue is taken up again."""

    def __init__(
        self, options: SlurmOptions, folder: Path, work: Callable[[Sequence[str]], Outcome]
    ) -> None:  # fmt: skip
        self._options, self._work, self._folder = options, work, folder.resolve() / "submitit"
        local = options.cluster == "local"
        self._free = portions(options.gpus, visible_devices()) if local else []
        self._width = self._room(local)
        self._executor = _executor(options, self._folder)
        self._waiting: list[Job] = []
        self._busy: dict[str, Submitted] = {}

    def _room(self, local: bool) -> int:
        if self._options.cluster == "debug":
            return 1
        if not local:
            return self._options.jobs
        limits = [self._options.jobs, max(1, cores() // self._options.cpus)]
        return min([*limits, len(self._free)] if self._options.gpus else limits)

    @property
    def width(self) -> int:
        """Jobs submitted and not ended, at a time."""
        return self._width

    def start(self, job: Job) -> None:
        """Note the job; `ended` submits all that were noted as one array."""
        remote = self._left_behind(job)
        if remote is None:
            self._waiting.append(job)
        else:
            self._busy[job.id] = Submitted(job, remote, None, time.monotonic())

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Submit what waits, then look until jobs have ended."""
        self._submit()
        done: list[Submitted] = []
        while self._busy and not done:
            done = [submitted for submitted in self._busy.values() if submitted.remote.done()]
            if not done:
                time.sleep(SECONDS_BETWEEN_LOOKS[self._options.cluster])
        for submitted in done:
            self._forget(submitted)
            yield submitted.job, _outcome(submitted)

    def _submit(self) -> None:
        jobs, self._waiting = self._waiting, []
        if not jobs:
            return
        devices = [self._free.pop(0) if self._free else None for _ in jobs]
        options = self._options
        tasks = [
            task_of(self._work, job.overrides, options.cpus, None, device)
            for job, device in zip(jobs, devices, strict=True)
        ]
        try:
            with born_deaf():  # submitit's own processes would die of a Ctrl-C that is not theirs
                remotes = self._executor.map_array(Preemptible(), tasks)
        except Exception as error:  # submitit has kinds of its own for what sbatch answers
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"launcher=slurm: the cluster took no jobs: {reason}") from error
        for job, device, remote in zip(jobs, devices, remotes, strict=True):
            self._record(job).write_text(remote.job_id, "utf-8")
            self._busy[job.id] = Submitted(job, remote, device, time.monotonic())

    def _forget(self, submitted: Submitted) -> None:
        del self._busy[submitted.job.id]
        self._record(submitted.job).unlink(missing_ok=True)
        if submitted.device is not None:
            self._free.append(submitted.device)

    def _record(self, job: Job) -> Path:
        return self._folder / f"{job.id}.id"

    def _left_behind(self, job: Job) -> Any:
        """The cluster's job of a sweep that was killed, if it is in the queue or runs."""
        record = self._record(job)
        if self._options.cluster != "slurm" or not record.exists():
            return None
        import submitit

        remote = submitit.SlurmJob(self._folder, record.read_text("utf-8"))
        return remote if remote.state.upper().split()[0] in UNDER_WAY else None

    def __enter__(self) -> "SlurmJobs":
        return self

    def __exit__(self, *_: object) -> None:
        for submitted in self._busy.values():
            _ask_to_end(submitted.remote, self._options.cluster)
        until = time.monotonic() + self._options.warning
        for submitted in list(self._busy.values()):
            while self._options.cluster != "debug" and not submitted.remote.done():
                if time.monotonic() > until:
                    submitted.remote.cancel(check=False)
                    break
                time.sleep(SECONDS_BETWEEN_LOOKS[self._options.cluster])
            self._forget(submitted)


def _executor(options: SlurmOptions, folder: Path) -> Any:
    import submitit

    settings = {f"{options.cluster}_max_num_timeout": options.requeues} if options.cluster != "debug" else {}
    try:
        executor = submitit.AutoExecutor(folder, cluster=options.cluster, **settings)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise UserError(
            f"launcher.cluster: {error}; start the sweep on a login node of the cluster, or try it here by "
            "launcher.cluster=local"
        ) from None
    named = {"name": "metalearn", "cpus_per_task": options.cpus, "timeout_min": math.ceil(options.minutes)}
    needed = {"mem_gb": options.memory, "gpus_per_node": options.gpus or None}
    if options.cluster == "slurm":
        places = ("partition", "account", "qos", "constraint", "setup", "array_parallelism")
        needed |= {f"slurm_{name}": getattr(options, name) or None for name in places}
        needed["slurm_signal_delay_s"] = options.warning
    executor.update_parameters(**named, **{k: v for k, v in needed.items() if v is not None})
    folder.mkdir(parents=True, exist_ok=True)
    return executor


def _outcome(submitted: Submitted) -> Outcome:
    """What the job's process left, or that it left nothing and where its log is."""
    remote, seconds = submitted.remote, time.monotonic() - submitted.since
    error = None
    if type(remote).__name__ == "LocalJob" and not remote.paths.result_pickle.exists():
        error = "left no result"
    elif remote.exception() is not None:
        error = str(remote.exception()).splitlines()[0]
    if error is None:
        return remote.result()
    said = (
        f"job {remote.job_id} of the cluster {error} (state {remote.state}); its log is {remote.paths.stderr}"
    )
    return Outcome("failed", said, seconds)


def _ask_to_end(remote: Any, cluster: str) -> None:
    """SIGTERM to the job's process: scancel at SLURM; submitit's own processes pass it on."""
    if cluster == "slurm":
        remote.cancel(check=False)
    elif cluster == "local":
        try:
            os.kill(int(remote.job_id), signal.SIGTERM)
        except ProcessLookupError:
            return
