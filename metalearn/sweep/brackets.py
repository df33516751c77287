"""Successive halving and Hyperband: short runs of many points, longer ones of the best."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from metalearn.registry import UserError
from metalearn.sweep.space import Point
from metalearn.sweep.strategy import Ask, Strategy


class Rung(NamedTuple):
    """How many points reach it, and how long each has then run."""

    points: int
    resource: float


def halving(population: int, eta: int, rungs: int, resource: float) -> list[Rung]:
    """One bracket whose last rung has the whole `resource`. Raises UserError if no point reaches it."""
    last = rungs - 1
    if population // eta**last == 0:
        raise UserError(
            f"sweep.population: got {population}, of which none is left after {last} times 1/{eta}; give at "
            f"least {eta**last}, or fewer rungs"
        )
    return [Rung(population // eta**i, resource / eta ** (last - i)) for i in range(rungs)]


def hyperband(resource: float, eta: int, population: int | None = None) -> list[list[Rung]]:
    """The brackets of Li et al. 2018, algorithm 1, for runs of 1 to `resource`, the boldest first.

    `population` instead of eta^s points in the first bracket scales all of them.
    """
    last = deepest(resource, eta)
    first = eta**last if population is None else population
    brackets = []
    for s in range(last, -1, -1):
        count = -(-(last + 1) * eta**s // (s + 1))
        brackets.append(halving(-(-first * count // eta**last), eta, s + 1, resource))
    return brackets


def deepest(resource: float, eta: int) -> int:
    """floor(log_eta(resource)), free of rounding."""
    power = 0
    while eta ** (power + 1) <= resource * (1 + 1e-9):
        power += 1
    return power


def in_steps(bracket: Sequence[Rung], steps: int, cadence: int) -> list[Rung]:
    """The same with resources as whole steps, at each of which there is a value. Raises UserError."""
    inner = [max(round(rung.resource / cadence), 1) * cadence for rung in bracket[:-1]]
    places = [*inner, steps]
    if any(a >= b for a, b in itertools.pairwise(places)):
        raise UserError(
            f"sweep: rungs at steps {', '.join(map(str, places))} are none, the metric is measured every "
            f"{cadence} steps; measure it more often, or ask for fewer rungs or a larger sweep.minimum"
        )
    return [Rung(rung.points, place) for rung, place in zip(bracket, places, strict=True)]


class Brackets(Strategy):
    """Runs brackets side by side; in each, a rung begins when the one before has ended."""

    def __init__(self, brackets: Sequence[Sequence[Rung]], points: Sequence[Point], goal: str) -> None:
        self._points = points
        self._brackets: list[_Bracket] = []
        first = 0
        for rungs in brackets:
            members = range(first, min(first + rungs[0].points, len(points)))
            self._brackets.append(_Bracket(rungs, list(members), 1 if goal == "min" else -1))
            first += rungs[0].points

    @property
    def total(self) -> int:
        return sum(rung.points for bracket in self._brackets for rung in bracket.rungs)

    def steps(self, whole: int) -> float:
        del whole  # the last rung's
        return sum(bracket.steps for bracket in self._brackets)

    def ask(self) -> Ask | None:
        for bracket in self._brackets:
            number = bracket.next()
            if number is not None:
                return Ask(number, self._points[number], bracket.until)
        return None

    def tell(self, ask: Ask, value: float | None) -> None:
        next(b for b in self._brackets if ask.number in b.values_to_come).tell(ask.number, value)

    def known(self) -> list[Ask]:
        return [
            Ask(number, self._points[number], bracket.until)
            for bracket in self._brackets
            for number in bracket.members
        ]

    def plan(self) -> list[str]:
        lines = []
        for place, bracket in enumerate(self._brackets):
            said = ", then ".join(f"{rung.points} to step {rung.resource:.0f}" for rung in bracket.rungs)
            lines.append(f"bracket {place + 1} of {len(self._brackets)}: {said}")
        steps, whole = self.steps(0), self._brackets[0].rungs[-1].resource * len(self._points)
        of_all = f"{steps / whole:.0%} of the {whole:.0f} that {len(self._points)} whole runs take"
        return [*lines, f"{steps:.0f} steps a seed, {of_all}"]


class _Bracket:
    """Where one bracket stands."""

    def __init__(self, rungs: Sequence[Rung], members: list[int], sign: int) -> None:
        self.rungs, self.members, self._sign = list(rungs), members, sign
        self._rung, self._asked = 0, 0
        self.values_to_come: set[int] = set()
        self._values: dict[int, float] = {}  # sign * value, smaller is better

    @property
    def steps(self) -> float:
        """Of all runs, each of which goes on where it stopped."""
        before = [0.0, *(rung.resource for rung in self.rungs[:-1])]
        return sum(r.points * (r.resource - b) for r, b in zip(self.rungs, before, strict=True))

    @property
    def until(self) -> int | None:
        last = self._rung == len(self.rungs) - 1
        return None if last else int(self.rungs[self._rung].resource)

    def next(self) -> int | None:
        """A member that has not been asked for at this rung."""
        if self._asked == len(self.members):
            return None
        number = self.members[self._asked]
        self._asked += 1
        self.values_to_come.add(number)
        return number

    def tell(self, number: int, value: float | None) -> None:
        self.values_to_come.remove(number)
        self._values[number] = math.inf if value is None else self._sign * value
        if not self.values_to_come and self._asked == len(self.members):
            self._promote()

    def _promote(self) -> None:
        """The best go on, those that failed or diverged do not."""
        if self._rung == len(self.rungs) - 1:
            return
        self._rung += 1
        sound = [number for number in self.members if math.isfinite(self._values[number])]
        best = sorted(sound, key=lambda number: (self._values[number], number))
        self.members = best[: self.rungs[self._rung].points]
        self._asked, self._values = 0, {}
