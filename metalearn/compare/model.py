"""What a comparison is, wherever its runs come from and however it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from metalearn.report.claims import Claim


class Series(NamedTuple):
    """All values of one metric of one run."""

    steps: numpy.ndarray  # int64
    values: numpy.ndarray  # float64


@dataclass(frozen=True)
class Entry:
    """One run, wherever it was read."""

    place: str  # run directory, or address at W&B
    source: str  # local, offline W&B or W&B
    seed: int | None
    state: str
    step: int
    message: str
    config: Mapping[str, Any]  # flat, dotted keys
    series: Mapping[str, Series]  # metric -> values, thinned for curves
    final: Mapping[str, float]  # metric -> last value
    best: Mapping[str, float]  # metric -> best value by the run's goal
    goals: Mapping[str, str]  # metric -> min or max
    seconds: float | None  # of training and evaluation
    parameters: int | None
    comparable: bool  # whether test figures may stand beside published ones
    joules: float | None = None  # energy, where the device told it
    artifacts: Path | None = None


class Estimate(NamedTuple):
    """A metric of one configuration over its seeds."""

    mean: float
    deviation: float | None  # sample standard deviation; None for one run
    half_width: float | None  # of the 95 % t-interval of the mean; None for one run
    values: dict[int, float]  # by seed (by place in the group where seeds repeat or lack)


class Band(NamedTuple):
    """The curve of one configuration: the mean of its runs and the 95 % interval at common steps."""

    steps: numpy.ndarray
    mean: numpy.ndarray
    low: numpy.ndarray
    high: numpy.ndarray
    runs: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str
    options: Mapping[str, str]  # the differing keys alone
    entries: tuple[Entry, ...]
    final: Mapping[str, Estimate]
    best: Mapping[str, Estimate]
    curves: Mapping[str, Band]
    parameters: str
    seconds: float | None  # mean of a run


class Pair(NamedTuple):
    """Two configurations held against each other."""

    metric: str
    kind: str  # final or best
    first: str
    second: str
    claim: Claim
    probability: float | None = None  # two-sided p, corrected for all pairs of the metric and kind
    basis: str = ""  # paired or Welch's, of how many runs


class Picture(NamedTuple):
    """A difference that is drawn: of genotypes or of learned updates."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Comparison:
    """All that a table, a file or a page shows."""

    title: str
    groups: tuple[Group, ...]
    keys: tuple[str, ...]  # in which configurations differ
    metrics: tuple[str, ...]
    curved: tuple[str, ...]  # the metrics with curves of several points
    pairs: tuple[Pair, ...]
    notices: tuple[str, ...] = ()
    stamps: Mapping[str, str] = field(default_factory=dict)  # metric -> what must stand beside it
    words: tuple[str, ...] = ()  # differences told in words: genotypes edge by edge, learned optimizers
    pictures: tuple[Picture, ...] = ()
