"""What several seeds allow one to say: means, deviations, and one contender held against another."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metalearn.records import NOT_COMPARABLE
from metalearn.report.numbers import measured, plain

CONFIDENCE = 0.95
LEAST_SEEDS = 3  # that a claim takes
RULE = (
    "In a table, ± is the sample standard deviation over seeds. In a claim, the first contender is held "
    "against the best of the others (by mean), seed by seed; ± is half the width of the 95 % t-interval of "
    "the mean paired difference, and 'beats' and 'loses to' are said only where this interval excludes zero. "
    "Where runs of different contenders are no pairs, the interval is Welch's, of the difference of means."
)


class Summary(NamedTuple):
    """Values of several seeds."""

    mean: float
    deviation: float | None  # sample standard deviation; None for one value

    def __str__(self) -> str:
        return measured(self.mean, self.deviation)


class Claim(NamedTuple):
    """What a comparison comes to."""

    verdict: str  # better, worse, unclear, none
    statement: str
    difference: float | None = None  # of the means, positive where the first is better
    half_width: float | None = None  # of its 95 % t-interval
    seeds: tuple[int, ...] = ()  # those that both have; of no pairs, the first's


def summary(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half the t-interval, 95 % unless told, of the mean of at least two values (Student 1908)."""
    from scipy.special import stdtrit  # lighter to import than scipy.stats

    quantile = float(stdtrit(len(values) - 1, 0.5 + confidence / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def welch(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half the interval, 95 % unless told, of the difference of independent samples' means (Welch 1947).

    Both have at least two values; 0 where all values of each are the same.
    """
    from scipy.special import stdtrit

    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (ours, theirs)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)


Values = Mapping[int, float]  # by seed


def claim(
    contenders: Mapping[str, Values], goal: str, unit: str, note: str = "", paired: bool = True
) -> Claim:
    """The first contender against the best of the others. `contenders`: name -> seed -> value.

    `note` says what is equal between them, e.g. "in equal time". `paired`: whether equal seeds make pairs;
    otherwise the runs of both are independent samples.
    """
    (first, ours), *rest = contenders.items()
    others = [(name, values) for name, values in rest if values]
    if not others or not ours:
        empty = first if not ours else " and ".join(name for name, _ in rest) or "the control"
        return Claim("none", f"no claim: no finished run of {empty}")
    sign = 1 if goal == "min" else -1
    second, theirs = min(others, key=lambda other: sign * statistics.fmean(other[1].values()))
    seeds = tuple(seed for seed in ours if seed in theirs) if paired else tuple(ours)
    if (least := len(seeds) if paired else min(len(ours), len(theirs))) < LEAST_SEEDS:
        shared = f"{least} finished seed{'' if least == 1 else 's'}"
        share = "share" if paired else "have as few as"
        return Claim("none", f"no claim: {first} and {second} {share} {shared}, a claim takes {LEAST_SEEDS}")
    mean, half, basis = (_paired if paired else _independent)(ours, theirs, sign)
    verdict = "better" if mean - half > 0 else "worse" if mean + half < 0 else "unclear"
    words = f"{measured(abs(mean), half)} {'percentage points' if unit == '%' else unit}".rstrip()
    basis = f"{note} {basis}".lstrip()
    ahead = first if mean >= 0 else second
    statement = {
        "better": f"{first} beats {second} by {words} {basis}",
        "worse": f"{first} loses to {second} by {words} {basis}",
        "unclear": f"no clear difference between {first} and {second}: {ahead} ahead by {words} {basis}",
    }[verdict]
    return Claim(verdict, statement, mean, half, seeds)


def _paired(ours: Values, theirs: Values, sign: int) -> tuple[float, float, str]:
    differences = [sign * (theirs[seed] - ours[seed]) for seed in ours if seed in theirs]
    basis = f"(paired, {len(differences)} seeds)"
    return statistics.fmean(differences), half_width(differences), basis


def _independent(ours: Values, theirs: Values, sign: int) -> tuple[float, float, str]:
    first, second = list(ours.values()), list(theirs.values())
    mean = sign * (statistics.fmean(second) - statistics.fmean(first))
    return mean, welch(first, second), f"(Welch, {len(first)} and {len(second)} runs)"


def published(paper: Mapping[str, Any]) -> str:
    """A paper's value as printed there."""
    if paper["value"] is None:
        return "-"
    if paper["spread"] is None:
        return f"{paper['value']:g} {paper['unit']}".rstrip()
    decimals = max(len(f"{paper[key]:g}".partition(".")[2]) for key in ("value", "spread"))
    return f"{paper['value']:.{decimals}f} ± {paper['spread']:g} {paper['unit']}".rstrip()


def against_paper(values: Sequence[float], paper: Mapping[str, Any], comparable: bool, goal: str) -> str:
    """Ours beside the published value; a verdict only for two seeds or more on the published data.

    The 95 % t-interval of our mean is held against the published value, widened by its spread.
    """
    if not comparable:
        return NOT_COMPARABLE
    if paper["value"] is None:
        return "no verdict: no number published"
    if len(values) < 2:
        return f"no verdict: {len(values)} seed{'' if len(values) == 1 else 's'}, two are needed"
    mean, room = statistics.fmean(values), half_width(values) + (paper["spread"] or 0.0)
    distance = mean - paper["value"]
    if abs(distance) <= room:
        return f"agrees ({len(values)} seeds)"
    word = "better" if (distance < 0) == (goal == "min") else "worse"
    return f"{word} by {plain(abs(distance))} ({len(values)} seeds)"
