"""Where the jobs of a sweep run: the interface of `launcher=processes | joblib | slurm | ray`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from metalearn.work import Outcome


class Job(NamedTuple):
    """One run of a sweep."""

    id: str  # digest of its overrides, the same in every launch of the sweep
    overrides: tuple[str, ...]  # complete: seed and run_dir are among them
    folder: Path  # the run directory

    def __str__(self) -> str:
        return self.id


class Executor(ABC):
    """Runs jobs by `work(job.overrides)` in processes of its own.

    As a context manager: on leaving it, running jobs are asked to checkpoint and end (SIGTERM, scancel)
    and are waited for.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """How many jobs may run at a time."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Begin a job. At most `width` are under way."""

    @abstractmethod
    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until at least one job has ended; each with its outcome. The death of one costs it alone."""

    @abstractmethod
    def __enter__(self) -> "Executor": ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...
