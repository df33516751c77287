"""Configurations held against one: paired by seed where seeds are shared, Holm's correction for several."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from metalearn.compare.estimates import counted, seeds
from metalearn.compare.model import Estimate, Group, Pair
from metalearn.report.claims import CONFIDENCE, LEAST_SEEDS, Claim, half_width, welch
from metalearn.report.numbers import measured

KINDS = ("final", "best")
RULE = (
    "The baseline against every other configuration: paired by seed where three or more seeds are shared, "
    "else Welch's test of independent runs. ± is half the width of the 95 % t-interval of the mean "
    "difference; p is two-sided, corrected for the number of configurations (Holm 1979). 'beats' and 'loses "
    "to' are said only where p is below 0.05."
)


class Test(NamedTuple):
    """A difference of two means, in favour of the first where it is positive."""

    difference: float
    half_width: float  # of its 95 % interval
    probability: float  # two-sided
    basis: str
    seeds: tuple[int, ...]


def pairs(groups: Sequence[Group], first: Group, metrics: Sequence[str]) -> list[Pair]:
    """The first against each of the others on the same task, for each metric that both have."""
    others = [group for group in groups if group is not first and task(group) == task(first)]
    found = [_of_metric(first, others, metric, kind) for metric in metrics for kind in KINDS]
    return [pair for part in found for pair in part]


def task(group: Group) -> str | None:
    """What its runs learn; figures of different tasks are not held against each other."""
    return group.entries[0].config.get("task.name")


def _of_metric(first: Group, others: Sequence[Group], metric: str, kind: str) -> list[Pair]:
    ours = getattr(first, kind).get(metric)
    if ours is None or (kind == "best" and metric not in first.curves):  # one value is final and best
        return []
    there = [group for group in others if metric in getattr(group, kind)]
    sign = 1 if _goal(first, metric) == "min" else -1
    tests = [
        tested(ours, getattr(group, kind)[metric], sign, _seeded(first, group))
        if _finished(first, group)
        else None
        for group in there
    ]
    corrected = iter(holm([test.probability for test in tests if test]))
    several = sum(test is not None for test in tests)
    found = []
    for group, test in zip(there, tests, strict=True):
        own = next(corrected) if test else None
        what = metric if kind == "final" else f"{metric} (best)"
        claim = _claim(what, (first.label, group.label), test, own, several)
        found.append(Pair(metric, kind, first.label, group.label, claim, own, test.basis if test else ""))
    return found


def _goal(group: Group, metric: str) -> str:
    return next(entry.goals[metric] for entry in group.entries if metric in entry.goals)


def _finished(first: Group, second: Group) -> bool:
    """Whether the figures of both are of runs that got to their end."""
    return all(entry.state == "finished" for group in (first, second) for entry in counted(group.entries))


def _seeded(first: Group, second: Group) -> bool:
    """Whether equal numbers in the values of both are equal seeds."""
    return all(seeds(counted(group.entries)) is not None for group in (first, second))


def tested(ours: Estimate, theirs: Estimate, sign: int, seeded: bool) -> Test | None:
    """`sign` 1: less is better, -1: more. None for too few runs, or values that are no numbers."""
    if not all(math.isfinite(value) for one in (ours, theirs) for value in one.values.values()):
        return None
    shared = tuple(seed for seed in ours.values if seed in theirs.values) if seeded else ()
    if len(shared) >= LEAST_SEEDS:
        return _paired([sign * (theirs.values[seed] - ours.values[seed]) for seed in shared], shared)
    first, second = list(ours.values.values()), list(theirs.values.values())
    if min(len(first), len(second)) < LEAST_SEEDS:
        return None
    return _independent([sign * value for value in first], [sign * value for value in second])


def _paired(differences: Sequence[float], shared: tuple[int, ...]) -> Test:
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    probability = _two_sided(mean, error, len(differences) - 1)
    return Test(mean, half_width(differences), probability, f"paired, {len(shared)} seeds", shared)


def _independent(ours: Sequence[float], theirs: Sequence[float]) -> Test:
    mean = statistics.fmean(theirs) - statistics.fmean(ours)
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    squares = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (ours, theirs), strict=True))
    freedom = sum(parts) ** 2 / squares if squares else 1.0
    probability = _two_sided(mean, math.sqrt(sum(parts)), freedom)
    basis = f"Welch, {len(ours)} and {len(theirs)} runs"
    return Test(mean, welch(ours, theirs), probability, basis, tuple(range(len(ours))))


def _two_sided(mean: float, error: float, freedom: float) -> float:
    from scipy.special import stdtr  # lighter to import than scipy.stats

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(mean) / error))


def holm(probabilities: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step down (Holm 1979)."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__)
    corrected, greatest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        greatest = max(greatest, min(1.0, (len(order) - rank) * probabilities[place]))
        corrected[place] = greatest
    return corrected


def _claim(
    what: str, names: tuple[str, str], test: Test | None, corrected: float | None, several: int
) -> Claim:
    first, second = names
    if test is None or corrected is None:
        needed = f"a test takes {LEAST_SEEDS} finished runs of both and finite values"
        return Claim("none", f"{what}: no claim on {first} and {second}, {needed}")
    clear = corrected < 1 - CONFIDENCE
    verdict = ("better" if test.difference > 0 else "worse") if clear else "unclear"
    words = measured(abs(test.difference), test.half_width)
    holms = f" after Holm over {several}" if several > 1 else ""
    basis = f"{words} ({test.basis}, p = {probability(corrected)}{holms})"
    ahead = first if test.difference >= 0 else second
    statement = {
        "better": f"{first} beats {second} by {basis}",
        "worse": f"{first} loses to {second} by {basis}",
        "unclear": f"no clear difference between {first} and {second}: {ahead} ahead by {basis}",
    }[verdict]
    return Claim(verdict, f"{what}: {statement}", test.difference, test.half_width, test.seeds)


def probability(value: float) -> str:
    """A p-value as one reads it."""
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"
