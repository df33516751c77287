"""Learned optimizers held against each other: what update each makes of the same gradient."""

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy

from metalearn.compare.estimates import counted
from metalearn.compare.model import Entry, Group, Picture
from metalearn.report.figures import Band, chart
from metalearn.report.numbers import plain

LEARNED = "learned optimizer"  # the name in updates.json
POINTS = 81  # of the common grid
SHOWN = 8  # configurations: as many as there are colours


class Curves(NamedTuple):
    """A run's updates of one coordinate in the first steps of an inner run, if its gradient were another."""

    gradients: numpy.ndarray  # [point], rising
    updates: numpy.ndarray  # [step point]


def of(groups: Sequence[Group]) -> tuple[list[str], list[Picture]]:
    """How far the updates of configurations lie apart, beside how far those of seeds do; drawn."""
    found = {group.label: curves for group in groups if (curves := _of_group(group))}
    left, found = len(found) - SHOWN, dict(list(found.items())[:SHOWN])
    if not found:
        return [], []
    grid = common(found)
    tables = {label: [_on(grid, run) for run in curves] for label, curves in found.items()}
    first = next(iter(tables))
    words = [_spread(label, runs) for label, runs in tables.items() if len(runs) > 1]
    words += [_apart(first, label, tables[first], tables[label]) for label in list(tables)[1:]]
    if left > 0:
        words.append(f"The updates of {left} further configurations are left out.")
    return words, [_picture(grid, tables)]


def _of_group(group: Group) -> list[Curves]:
    return [curves for entry in counted(group.entries) if (curves := read(entry)) is not None]


def read(entry: Entry) -> Curves | None:
    """A run's artifacts/updates.json; None where there is none, or it is broken."""
    if entry.artifacts is None:
        return None
    try:
        content: Any = json.loads((entry.artifacts / "updates.json").read_text("utf-8"))
        gradients = numpy.array(content["varied"], dtype=float)
        updates = numpy.array(content["proposed"][LEARNED], dtype=float)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sound = updates.ndim == 2 and updates.shape[1:] == gradients.shape and numpy.isfinite(updates).all()
    rising = len(gradients) > 1 and bool((numpy.diff(gradients) > 0).all())
    return Curves(gradients, updates) if sound and rising else None


def common(found: dict[str, list[Curves]]) -> numpy.ndarray:
    """Gradients that all runs were asked for."""
    runs = [run for curves in found.values() for run in curves]
    low, high = max(run.gradients[0] for run in runs), min(run.gradients[-1] for run in runs)
    return numpy.linspace(low, high, POINTS)


def _on(grid: numpy.ndarray, run: Curves) -> numpy.ndarray:
    """The run's mean update over its steps at the grid's gradients."""
    return numpy.interp(grid, run.gradients, run.updates.mean(axis=0))


def distance(ours: Sequence[numpy.ndarray], theirs: Sequence[numpy.ndarray]) -> float:
    """The mean absolute difference of the curves, over all pairs of one run each."""
    return float(numpy.mean([numpy.abs(one - other).mean() for one in ours for other in theirs]))


def _size(runs: Sequence[numpy.ndarray]) -> float:
    return float(numpy.mean([numpy.abs(run).mean() for run in runs]))


def _spread(label: str, runs: Sequence[numpy.ndarray]) -> str:
    apart = numpy.mean([numpy.abs(one - other).mean() for one, other in combinations(runs, 2)])
    return f"{label}: updates of {plain(_size(runs))} on average, {plain(float(apart))} apart between seeds"


def _apart(first: str, other: str, ours: Sequence[numpy.ndarray], theirs: Sequence[numpy.ndarray]) -> str:
    apart, size = distance(ours, theirs), _size([*ours, *theirs])
    share = f", {apart / size:.0%} of their mean size" if size else ""
    return f"{first} / {other}: updates differ by {plain(apart)} on average{share}"


def _picture(grid: numpy.ndarray, tables: dict[str, list[numpy.ndarray]]) -> Picture:
    bands = []
    for place, (label, runs) in enumerate(tables.items()):
        table = numpy.stack(runs)
        middle = table.mean(axis=0)
        spread = table.std(axis=0, ddof=1) if len(runs) > 1 else numpy.zeros_like(middle)
        bands.append(Band(label, grid, middle, middle - spread, middle + spread, len(runs), place))
    caption = (
        "The mean update over the first steps of an inner run, if the present gradient were another, from "
        f"{plain(float(grid[0]))} to {plain(float(grid[-1]))}: so far all runs were asked. The band is one "
        "standard deviation over seeds to either side."
    )
    return Picture("Updates of learned optimizers", caption, chart(bands, "gradient", "update", False))
