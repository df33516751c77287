"""A job as a process of a launcher does it: its surroundings, its time, its end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from metalearn.work import Outcome

CARRIED = ("METALEARN_", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_CACHE_DIR")  # no keys: tasks lie on disks
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Task(NamedTuple):
    """What travels to the process."""

    work: Callable[[Sequence[str]], Outcome]
    overrides: tuple[str, ...]
    folder: str  # the working directory: relative paths mean the same there
    environment: dict[str, str]
    minutes: float | None


def task_of(
    work: Callable[[Sequence[str]], Outcome],
    overrides: tuple[str, ...],
    cpus: int,
    minutes: float | None,
    devices: str | None = None,
) -> Task:
    """A task with the surroundings of this process; `devices` is its CUDA_VISIBLE_DEVICES, if given."""
    carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    environment = {**carried, "OMP_NUM_THREADS": str(cpus)}
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    return Task(work, overrides, str(Path.cwd()), environment, minutes)


def perform(task: Task) -> Outcome:
    """Do a task in this process. Its environment holds before torch is imported. Never raises."""
    started = time.monotonic()
    try:
        with _stoppable(), _timed(task.minutes) as late:
            os.chdir(task.folder)
            os.environ.update(task.environment)
            outcome = task.work(task.overrides)
    except SystemExit:
        return Outcome("interrupted", "", time.monotonic() - started)
    except OSError as error:
        return Outcome("failed", f"{task.folder}: {error.strerror} on this machine", 0.0)
    if outcome.state == "interrupted" and late.is_set():
        said = f"ended with a checkpoint after launcher.minutes={task.minutes:g}"
        return outcome._replace(message=said)
    return outcome


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """A block that signals end by SystemExit where no training loop catches them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _timed(minutes: float | None) -> Iterator[threading.Event]:
    """A block that is sent SIGTERM after its minutes; the event says that it was."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = None if minutes is None else threading.Timer(60 * minutes, stop)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield late
    finally:
        if timer is not None:
            timer.cancel()


def death(exit_code: int | None, folder: Path) -> str:
    """What is said of a job whose process died over it."""
    how = "" if exit_code is None else f" with exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        how = f", killed by {signal.Signals(-exit_code).name}"
        how += ", perhaps for want of memory" if exit_code == -signal.SIGKILL else ""
    return f"its process died{how}; {folder} holds what it had written"
