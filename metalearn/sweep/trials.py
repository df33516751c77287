"""The points of a sweep with their runs: what the tables are made of."""

import math
import statistics
from dataclasses import dataclass, field

from metalearn.sweep.definition import Searched
from metalearn.sweep.jobs import NEW, Result
from metalearn.sweep.space import Point

WORST_FIRST = ("failed", "interrupted", "new", "diverged", "stopped", "finished")


@dataclass
class Trial:
    """A point and its runs, one for each seed."""

    number: int
    id: str
    point: Point
    seeds: tuple[int, ...]
    until: int | None = None  # the step that its runs were last asked to reach; None: their end
    results: dict[int, Result] = field(default_factory=dict)

    def result(self, seed: int) -> Result:
        return self.results.get(seed, NEW)

    @property
    def state(self) -> str:
        """The worst of its runs."""
        states = [self.result(seed).state for seed in self.seeds]
        return min(states, key=WORST_FIRST.index)

    @property
    def settled(self) -> bool:
        return all(self.result(seed).settled for seed in self.seeds)

    @property
    def values(self) -> list[float]:
        return [value for seed in self.seeds if (value := self.result(seed).value) is not None]

    @property
    def value(self) -> float | None:
        """The mean over seeds, infinitely bad if one of them diverged; None while one is lacking."""
        values = self.values if self.settled else []
        return statistics.fmean(values) if len(values) == len(self.seeds) else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds."""
        values = self.values
        if self.value is None or len(values) < 2 or not all(map(math.isfinite, values)):
            return None
        return statistics.stdev(values)

    @property
    def step(self) -> int:
        return max(self.result(seed).step for seed in self.seeds)

    @property
    def seconds(self) -> float:
        return sum(self.result(seed).seconds or 0.0 for seed in self.seeds)


def ranked(trials: list[Trial], searched: Searched) -> list[Trial]:
    """The best first: among trials that got as far, and those that got farthest before others."""

    def place(trial: Trial) -> tuple[bool, bool, float, float, int]:
        value = trial.value
        if value is None:
            return True, not trial.settled, 0.0, 0.0, trial.number
        reached = math.inf if trial.until is None else trial.until
        return False, not math.isfinite(value), -reached, searched.sign * value, trial.number

    return sorted(trials, key=place)


def plain(trial: Trial) -> dict[str, object]:
    """A trial for JSON; what diverged has no value there."""

    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    runs = {
        str(seed): {**(result := trial.result(seed))._asdict(), "value": finite(result.value)}
        for seed in trial.seeds
    }
    return {
        "trial": trial.number,
        "id": trial.id,
        "overrides": list(trial.point),
        "state": trial.state,
        "value": finite(trial.value),
        "deviation": trial.deviation,
        "step": trial.step,
        "seconds": round(trial.seconds, 3),
        "runs": runs,
    }
