"""Means and 95 % intervals over seeds, of numbers and of curves."""

import math
from collections.abc import Sequence
from functools import cache, reduce

import numpy

from metalearn.compare.model import Band, Entry, Estimate
from metalearn.report.claims import CONFIDENCE, summary


def counted(entries: Sequence[Entry]) -> list[Entry]:
    """The runs of a configuration that its figures are of: those that finished, if any did."""
    return [entry for entry in entries if entry.state == "finished"] or list(entries)


def seeds(entries: Sequence[Entry]) -> list[int] | None:
    """The seed of each run; None where one lacks or repeats."""
    found = [entry.seed for entry in entries if entry.seed is not None]
    return found if len(set(found)) == len(entries) else None


def estimates(entries: Sequence[Entry], kind: str) -> dict[str, Estimate]:
    """Every metric's `final` or `best` value over the runs that have it."""
    names = dict.fromkeys(metric for entry in entries for metric in getattr(entry, kind))
    places = seeds(entries) or range(len(entries))
    return {
        metric: estimate({
            place: getattr(entry, kind)[metric]
            for place, entry in zip(places, entries, strict=True)
            if metric in getattr(entry, kind)
        })
        for metric in names
    }  # fmt: skip


def estimate(values: dict[int, float]) -> Estimate:
    """Mean, sample standard deviation and half the 95 % t-interval."""
    found = list(values.values())
    if not all(map(math.isfinite, found)):
        return Estimate(float(numpy.mean(found)), None, None, values)
    mean, deviation = summary(found)
    half = None if deviation is None else _quantile(len(found)) * deviation / math.sqrt(len(found))
    return Estimate(mean, deviation, half, values)


def bands(entries: Sequence[Entry]) -> dict[str, Band]:
    """Every metric that has several points in a run."""
    names = dict.fromkeys(metric for entry in entries for metric in entry.series)
    found = {metric: band([e for e in entries if metric in e.series], metric) for metric in names}
    return {metric: one for metric, one in found.items() if one is not None}


def band(entries: Sequence[Entry], metric: str) -> Band | None:
    """Mean and 95 % t-interval at the steps that all have; None where these are fewer than two."""
    curves = [entry.series[metric] for entry in entries]
    if any(len(curve.steps) < 2 for curve in curves):
        return None
    steps = reduce(_common, [curve.steps for curve in curves])
    if len(steps) < 2:
        return None
    table = numpy.stack([_at(steps, curve.steps, curve.values) for curve in curves])
    mean = table.mean(axis=0)
    half = _quantile(len(curves)) * _deviation(table, mean) / math.sqrt(len(curves))
    return Band(steps, mean, mean - half, mean + half, len(curves))


def _common(first: numpy.ndarray, second: numpy.ndarray) -> numpy.ndarray:
    return first if numpy.array_equal(first, second) else numpy.intersect1d(first, second)


def _deviation(table: numpy.ndarray, mean: numpy.ndarray) -> numpy.ndarray:
    return table.std(axis=0, ddof=1) if len(table) > 1 else numpy.zeros_like(mean)


@cache
def _quantile(count: int) -> float:
    from scipy.special import stdtrit  # lighter to import than scipy.stats

    return float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) if count > 1 else 0.0


def _at(steps: numpy.ndarray, own: numpy.ndarray, values: numpy.ndarray) -> numpy.ndarray:
    """The last value noted at each step, all of which are among the run's own."""
    return values[numpy.searchsorted(own, steps, side="right") - 1]
