"""Strategies that need no value: every combination, or points drawn at random."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

from metalearn.registry import UserError
from metalearn.sweep.space import Dimension, Point
from metalearn.sweep.strategy import Ask, Strategy

IN_VAIN = 1000  # draws of what is drawn already, before the rest of a space is called used up


class Listed(Strategy):
    """Points in order."""

    def __init__(self, points: Sequence[Point], words: str) -> None:
        self._asks = [Ask(number, point) for number, point in enumerate(points)]
        self._words, self._next = words, 0

    @property
    def total(self) -> int:
        return len(self._asks)

    def steps(self, whole: int) -> float:
        return self.total * whole

    def ask(self) -> Ask | None:
        if self._next == len(self._asks):
            return None
        self._next += 1
        return self._asks[self._next - 1]

    def tell(self, ask: Ask, value: float | None) -> None:
        """Nothing depends on it."""

    def known(self) -> list[Ask]:
        return list(self._asks)

    def plan(self) -> list[str]:
        return [f"{self._words}: {self.total} points"]


def grid(space: Sequence[Dimension]) -> list[Point]:
    """Every combination, the last key fastest. Raises UserError for an interval."""
    values = []
    for dimension in space:
        listed = dimension.values()
        if listed is None:
            raise UserError(
                f"{dimension.key}={dimension.text}: a grid takes values, e.g. a,b,c or range(1,9); for an "
                "interval choose sweep=random, tpe, gp, halving or hyperband"
            )
        values.append([dimension.override(value) for value in listed])
    return list(itertools.product(*values))


def draws(space: Sequence[Dimension], seed: int, count: int) -> list[Point]:
    """Points of which none comes twice, as many as there are; the first are the same for any `count`."""
    return list(itertools.islice(_fresh(space, seed), min(count, size(space))))


def _fresh(space: Sequence[Dimension], seed: int) -> Iterator[Point]:
    seen: set[Point] = set()
    in_vain = 0
    for number in itertools.count():
        rng = random.Random(f"{seed}/{number}")
        point = tuple(dimension.override(dimension.draw(rng)) for dimension in space)
        in_vain = in_vain + 1 if point in seen else 0
        if point not in seen:
            seen.add(point)
            yield point
        elif in_vain == IN_VAIN:
            return


def size(space: Sequence[Dimension]) -> int:
    """How many points there are, or as many as one could want."""
    sizes = [len(values) if (values := d.values()) is not None else 2**62 for d in space]
    return min(math.prod(sizes), 2**62)
