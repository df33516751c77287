"""What a sweep is: its jobs' common overrides, what is swept, and the digests that name them."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override

from metalearn.config import Config
from metalearn.sweep.executor import Job
from metalearn.sweep.options import GridOptions, HalvingOptions, HyperbandOptions, RandomOptions, SweepOptions
from metalearn.sweep.space import Dimension, Point, parse

# what neither names a job nor changes what it learns; log, machine.device and the like are free to change
PLACES = (
    "seed", "runs", "run_dir", "data_dir", "download", "log", "paper", "sweep", "launcher", "name", "role",
    "train.minutes", "train.keep", "train.stop_at", "machine.threads", "machine.timeout",
)  # fmt: skip
NOT_DEFINING = (
    "name",
    "params",
    "trials",
    "retries",
    "measure",
    "storage",
    "seeds",
    "metric",
    "goal",
    "value",
)


class Searched(NamedTuple):
    """What a strategy goes by."""

    metric: str | None
    goal: str
    value: str  # last or best

    @property
    def sign(self) -> int:
        return 1 if self.goal == "min" else -1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A whole sweep."""

    options: SweepOptions
    launcher: dict[str, Any]
    fixed: tuple[str, ...]  # overrides of every job
    flags: tuple[str, ...]  # --config-dir RUN, if the jobs start from a stored configuration
    space: tuple[Dimension, ...]
    seeds: tuple[int, ...]
    base: Config  # of one of its jobs: how long runs are, where they go
    searched: Searched

    @property
    def id(self) -> str:
        """Its name, or one made of its strategy and the digest of its definition."""
        if self.options.name:
            return self.options.name
        return f"{self.options.strategy}-{digest(json.dumps(self.definition, sort_keys=True))}"

    @property
    def folder(self) -> Path:
        return Path(self.base.runs).expanduser() / self.base.name / "sweeps" / self.id

    @property
    def definition(self) -> dict[str, Any]:
        """What must stay the same for results to belong together."""
        options = dataclasses.asdict(self.options)
        chosen = {key: value for key, value in options.items() if key not in NOT_DEFINING}
        if not isinstance(self.options, GridOptions):
            chosen |= self.searched._asdict()
        return {
            **chosen,
            "seeds": list(self.seeds),
            "fixed": sorted([*self.flags, *_identity(self.fixed)]),
            "swept": {dimension.key: dimension.canonical for dimension in self.space},
        }

    @property
    def grows(self) -> bool:
        """Whether more seeds leave its points as they are."""
        return type(self.options) in (GridOptions, RandomOptions)

    @property
    def cadence(self) -> int:
        """Every how many steps the metric is measured."""
        train = self.base.train
        logged = (self.searched.metric or "").startswith("train/")
        return train.log_every if logged else train.evaluate_every

    @property
    def searches(self) -> bool:
        """Whether it goes by a metric."""
        return not isinstance(self.options, GridOptions)

    @property
    def stops_runs(self) -> bool:
        return isinstance(self.options, HalvingOptions | HyperbandOptions)

    def identity(self, point: Point) -> str:
        """The digest of a job's overrides, whatever their order; its seeds share it."""
        return digest("\n".join(sorted([*self.flags, *_identity((*self.fixed, *point))])))

    def run_folder(self, point: Point, seed: int) -> Path:
        return self.folder / f"{self.identity(point)}_seed{seed}"

    def job(self, point: Point, seed: int, until: int | None = None) -> Job:
        """A run of the sweep, which stops at step `until`."""
        folder = self.run_folder(point, seed)
        keys = {line.partition("=")[0] for line in self.fixed}
        own = [
            f"seed={seed}",
            f"run_dir={quoted(str(folder))}",
            *([] if "log.group" in keys else [f"++log.group={quoted(f'{self.base.name}/{self.id}')}"]),
            *([] if "log.progress" in keys else ["log.progress=false"]),
            *([] if until is None else [f"++train.stop_at={until}"]),
        ]
        return Job(f"{self.identity(point)}_seed{seed}", (*self.flags, *self.fixed, *point, *own), folder)

    def rerun(self, point: Point, seed: int) -> list[str]:
        """The command that does the same as a run of its own."""
        return ["metalearn", "train", *self.flags, *self.fixed, *point, f"seed={seed}"]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def quoted(value: str) -> str:
    """A value as Hydra reads any text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def is_place(key: str) -> bool:
    """Whether a key changes nothing that is learned."""
    return any(key == place or key.startswith(place + ".") for place in PLACES)


def _identity(overrides: Sequence[str]) -> list[str]:
    return [_canonical(override) for override in parse(overrides) if not is_place(override.key_or_group)]


def _canonical(override: Override) -> str:
    if override.is_delete():
        return override.input_line or ""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"
