"""An entry from what any source tells of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy

from metalearn.compare.model import Entry, Series
from metalearn.compare.thinning import thinned
from metalearn.records import flat


@dataclasses.dataclass(frozen=True)
class Told:
    """A run as its source has it: the configuration nested, all values of all metrics."""

    place: str
    source: str
    config: Mapping[str, Any]
    series: Mapping[str, Series]
    state: str
    step: int
    message: str = ""
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other fields of Entry


def entry(told: Told) -> Entry:
    """Final and best values of all points; then curves are thinned."""
    config = flat(dict(told.config))
    series = {metric: one for metric, one in told.series.items() if len(one.steps)}
    goals = {metric: goal(config, metric) for metric in series}
    seed = config.get("seed")
    known = {"seconds": None, "parameters": None, "comparable": True}
    return Entry(
        place=told.place,
        source=told.source,
        seed=seed if isinstance(seed, int) else None,
        state=told.state,
        step=told.step,
        message=told.message,
        config=config,
        series={metric: thinned(one) for metric, one in series.items()},
        final={metric: float(one.values[-1]) for metric, one in series.items()},
        best={metric: _best(one.values, goals[metric]) for metric, one in series.items()},
        goals=goals,
        **{**known, **told.more},
    )


def goal(config: Mapping[str, Any], metric: str) -> str:
    """min or max: `train.goal` for the quantity that `train.monitor` names, min for all others."""
    monitored = str(config.get("train.monitor") or "").rpartition("/")[2]
    return config.get("train.goal", "min") if metric.rpartition("/")[2] == monitored else "min"


def _best(values: numpy.ndarray, goal: str) -> float:
    """NaN counts only where there is nothing else."""
    numbers = values[~numpy.isnan(values)]
    if not len(numbers):
        return float("nan")
    return float(numbers.min() if goal == "min" else numbers.max())
