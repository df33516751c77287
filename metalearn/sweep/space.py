"""What is swept: one dimension a key, in Hydra's grammar of overrides."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from metalearn.compose import options
from metalearn.registry import UserError

Point = tuple[str, ...]  # an override a dimension
MOST = 20_000  # jobs of a sweep; each costs some milliseconds before the first can begin
DIGITS = 6  # significant ones of a drawn number: a command line stays readable


@dataclass(frozen=True)
class Dimension(ABC):
    """A key and what it may be."""

    key: str
    text: str  # as the user wrote it

    @abstractmethod
    def values(self) -> tuple[str, ...] | None:
        """All values in order, or None if there are endlessly many."""

    @property
    @abstractmethod
    def canonical(self) -> str:
        """The same however it was written."""

    @abstractmethod
    def draw(self, rng: random.Random) -> str:
        """One value."""

    def override(self, value: str) -> str:
        return f"{self.key}={value}"


@dataclass(frozen=True)
class Listed(Dimension):
    """Values without an order: a,b,c, choice(), glob()."""

    listed: tuple[str, ...]

    @property
    def canonical(self) -> str:
        return ",".join(self.listed)

    def values(self) -> tuple[str, ...]:
        return self.listed

    def draw(self, rng: random.Random) -> str:
        return rng.choice(self.listed)


@dataclass(frozen=True)
class Stepped(Dimension):
    """range(low, high, step): evenly spaced numbers."""

    low: float
    high: float  # the last of them
    step: float

    @property
    def canonical(self) -> str:
        return ",".join(self.values())

    def values(self) -> tuple[str, ...]:
        count = round((self.high - self.low) / self.step) + 1
        return tuple(self.said(self.low + number * self.step) for number in range(count))

    def draw(self, rng: random.Random) -> str:
        return rng.choice(self.values())

    def said(self, value: float) -> str:
        """A value as text."""
        return str(value) if isinstance(value, int) else f"{value:.12g}"


@dataclass(frozen=True)
class Interval(Dimension):
    """interval(low, high), log-uniform with the tag log, whole numbers by int(...) or the tag int."""

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def canonical(self) -> str:
        tags = ["log"] * self.log + ["int"] * self.whole
        return f"{' '.join([*tags, 'interval'])}({float(self.low):g},{float(self.high):g})"

    def values(self) -> None:
        return None

    def draw(self, rng: random.Random) -> str:
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if not self.log:
            return self.said(rng.uniform(low, high))
        return self.said(math.exp(rng.uniform(math.log(low), math.log(high))))

    def said(self, value: float) -> str:
        """A value as text, within the bounds."""
        if self.whole:
            return str(round(min(max(value, self.low), self.high)))
        return repr(min(max(float(f"{value:.{DIGITS}g}"), float(self.low)), float(self.high)))


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises Hydra's errors."""
    return OverridesParser.create(_Options()).parse_overrides(list(overrides))  # type: ignore[arg-type]


def dimension(override: Override) -> Dimension:
    """What a swept override offers. Raises UserError."""
    key, swept = override.get_key_element(), override.value()
    text = (override.input_line or "").partition("=")[2]
    if isinstance(swept, IntervalSweep):
        return _interval(key, text, swept)
    if isinstance(swept, RangeSweep):
        _check_length(f"{key}={text}", swept)
    if isinstance(swept, RangeSweep) and not swept.shuffle and swept.stop is not None:
        return _stepped(key, text, swept)
    listed = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not listed:
        raise UserError(f"{key}={text}: is empty; give at least one value")
    return Listed(key, text, listed)


def _interval(key: str, text: str, swept: IntervalSweep) -> Interval:
    low, high = swept.start, swept.end
    assert low is not None
    assert high is not None
    log, whole = "log" in swept.tags, "int" in swept.tags or isinstance(low, int)
    if whole and math.isfinite(low) and math.isfinite(high):
        low, high = math.ceil(low), math.floor(high)
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        above = " above 0" if log else ""
        raise UserError(f"{key}={text}: an interval is from a number{above} to a larger one")
    if swept.tags - {"log", "int"}:
        raise UserError(f"{key}={text}: no such tag; an interval takes log and int")
    return Interval(key, text, low, high, log, whole)


def _check_length(said: str, swept: RangeSweep) -> None:
    if swept.start is None or swept.stop is None or not swept.step:
        return
    count = (float(swept.stop) - float(swept.start)) / float(swept.step)
    if count > MOST:
        raise UserError(f"{said}: {count:.0f} values, a sweep takes {MOST} jobs at most; take larger steps")


def _stepped(key: str, text: str, swept: RangeSweep) -> Dimension:
    values = list(swept.range())
    if not values:
        raise UserError(f"{key}={text}: is empty; a range ends before its second number")
    if len(values) == 1 or float(swept.step) < 0:
        return Listed(key, text, tuple(map(str, values)))
    return Stepped(key, text, values[0], values[-1], swept.step)


class _Options:
    """What Hydra's glob asks for the names of a group."""

    def get_group_options(self, group_name: str, *_: Any, **__: Any) -> list[str]:
        return options(group_name)
