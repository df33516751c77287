"""launcher=ray: tasks of Ray, started on this machine or on a cluster that is there."""

import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metalearn.registry import UserError
from metalearn.sweep.executor import Executor, Job
from metalearn.sweep.executors.options import RayOptions
from metalearn.sweep.executors.places import cores, visible_devices
from metalearn.sweep.executors.task import death, perform, task_of
from metalearn.work import Outcome

QUIET = {  # read by Ray when it is imported or started
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray sends this folder, runs and all, to workers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayTasks(Executor):
    """A task of Ray for each job; Ray gives it cores, GPUs and memory, and finds a machine that has them."""

    def __init__(
        self, options: RayOptions, folder: Path, work: Callable[[Sequence[str]], Outcome]
    ) -> None:  # fmt: skip
        del folder  # Ray's own files are of its session, in its temporary folder
        self._options, self._work = options, work
        self._busy: dict[Any, tuple[Job, float]] = {}
        if options.address is None:
            self._resources = {"CPU": float(cores()), "GPU": float(len(visible_devices()))}
            self._check_room("this machine")

    @property
    def width(self) -> int:
        """Jobs at a time: what Ray's resources allow."""
        wanted = {"CPU": self._options.cpus, "GPU": self._options.gpus}
        if self._options.memory:
            wanted["memory"] = self._options.memory * 1e9
        room = [int(self._resources.get(name, 0) / size) for name, size in wanted.items() if size]
        return min([*room, self._options.jobs] if self._options.jobs else room)

    def start(self, job: Job) -> None:
        """Give Ray the task."""
        import ray

        options = self._options
        needed: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus}
        if options.memory:
            needed["memory"] = int(options.memory * 1e9)
        remote = ray.remote(max_retries=options.retries, **needed)(perform)
        task = task_of(self._work, job.overrides, options.cpus, options.minutes)
        self._busy[remote.remote(task)] = job, time.monotonic()

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait for tasks."""
        import ray
        from ray.exceptions import RayError

        ready = ray.wait(list(self._busy), num_returns=1)[0] if self._busy else []
        for reference in ready:
            job, since = self._busy.pop(reference)
            try:
                yield job, ray.get(reference)
            except RayError as error:
                yield job, Outcome("failed", _said(error, job.folder), time.monotonic() - since)

    def __enter__(self) -> "RayTasks":
        _prepare(self._options.address is None)
        import ray

        before = signal.getsignal(signal.SIGTERM)
        options = self._options
        here: dict[str, Any] = {} if options.address else {
            "num_cpus": int(self._resources["CPU"]),
            "num_gpus": int(self._resources["GPU"]),
            "object_store_memory": int(options.store * 1e9),
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",  # nobody else is let in
        }  # fmt: skip
        try:
            ray.init(options.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"launcher=ray: no Ray at {options.address or 'this machine'}: {reason}"
            ) from None
        signal.signal(signal.SIGTERM, before)  # Ray puts its own
        self._resources = ray.cluster_resources()
        try:
            self._check_room(f"the Ray at {options.address or 'this machine'}")
        except UserError:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for reference in self._busy:
            ray.cancel(reference)  # SIGINT: after a checkpoint
        if self._busy:
            ray.wait(list(self._busy), num_returns=len(self._busy))
        self._busy.clear()
        ray.shutdown()

    def _check_room(self, where: str) -> None:
        for key, name in (("cpus", "CPU"), ("gpus", "GPU")):
            wanted, there = getattr(self._options, key), self._resources.get(name, 0)
            if wanted > there:
                raise UserError(
                    f"launcher.{key}: got {wanted:g}, {name}s visible on {where}: {there:g}; lower it, or "
                    "use a cluster by launcher.address"
                )
        if self.width < 1:
            raise UserError(f"launcher.memory: {self._options.memory:g} GB a job are not there on {where}")


def _prepare(alone: bool) -> None:
    """What Ray reads when it is imported. A Ray of our own gets its token here, and writes none into home."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if alone and not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _said(error: Exception, folder: Path) -> str:
    """One line for Ray's page."""
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    if isinstance(error, WorkerCrashedError | OutOfMemoryError):
        return death(None, folder)
    return f"Ray: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}; see {folder}"
