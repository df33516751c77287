"""How a sweep chooses what runs next: ask for a configuration, tell how it ended."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from metalearn.sweep.space import Point


class Ask(NamedTuple):
    """A configuration to be run, or to go on."""

    number: int  # of the configuration: the same each time it is asked for
    point: Point
    until: int | None = None  # the step at which its runs stop; None: to their end


class Strategy(ABC):
    """Chooses by what it was told, and by nothing else: a sweep that goes on chooses as an unbroken one."""

    @property
    @abstractmethod
    def total(self) -> int:
        """How many times it will ask, at most."""

    @abstractmethod
    def steps(self, whole: int) -> float:
        """How many steps of one seed that is, if a run has `whole`."""

    @abstractmethod
    def ask(self) -> Ask | None:
        """What to run next; None: nothing before it is told more, or nothing any more."""

    @abstractmethod
    def tell(self, ask: Ask, value: float | None) -> None:
        """The value of what was asked for, infinitely bad where it diverged; None: it failed."""

    @abstractmethod
    def known(self) -> list[Ask]:
        """What it is sure to ask for, whatever it is told."""

    @abstractmethod
    def plan(self) -> list[str]:
        """Lines that say what it comes to."""
