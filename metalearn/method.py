"""All that the training loop knows of what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from metalearn.hypergradient.base import HyperGradient, Segment
from metalearn.machine import Machine
from metalearn.network import Network
from metalearn.problem import Inner, Problem
from metalearn.rng import Key
from metalearn.task import Metrics, Split, Task, TaskSpec
from metalearn.tree import Tree


class Builder(Protocol):
    """Builds what a method needs beside the configured task and network."""

    def task(self, options: Any) -> Task:
        """A task with the run's seed and data."""
        ...

    def network(self, options: Any, spec: TaskSpec, *key: Key) -> Network:
        """A network on the device; equal keys, equal weights."""
        ...


class Context(NamedTuple):
    """What a method is built from, beside its own options."""

    task: Task
    network: Callable[..., Network]  # builds the configured network on the device; equal keys, equal weights
    hypergradient: HyperGradient | None
    machine: Machine
    seed: int
    steps: int  # how many calls of `step` the run will make: schedules end there
    rule: Any = None  # options of a registered rule
    mixture: Any = None  # options of a registered mixture
    build: Builder | None = None


class Method(ABC):
    """A thing that learns in steps. Built as `Class(options, context)`."""

    shares_steps: bool = False  # whether `step` splits its work over `machine.processes`
    reads_test: bool = True  # whether `evaluate` takes the test split
    uses: tuple[str, ...] = ()  # those of the groups `rule` and `mixture` that it has a use for
    measures: tuple[str, ...] = ()  # all that validation measures; empty: that is not known before it
    learns_on: TaskSpec | None = None  # where that is another task than the configured one, a mixture
    ended: str = ""  # why it wants no more steps, by a stopping rule of its own; empty: it goes on

    @abstractmethod
    def step(self, index: int) -> Metrics:
        """One step; pure in (state, index). Returns detached tensors that are still on the device."""

    @abstractmethod
    def evaluate(self, split: Split) -> Metrics:
        """Metrics named `split/quantity`, leaving the state as it was."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact resume needs, in plain containers of tensors and numbers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""

    @abstractmethod
    def artifacts(self, folder: Path) -> None:
        """Write what a user takes away from a finished run: genotype, pictures, weights, curves."""


class Situation(NamedTuple):
    """All that a hypergradient is computed from, at one moment of a run."""

    problem: Problem
    meta: Tree
    inner: Inner  # where the inner run stands
    segment: Segment


class Bilevel(Method):
    """A method whose meta-parameters descend a hypergradient."""

    @abstractmethod
    def situations(self, index: int) -> list[Situation]:
        """What `step(index)` would differentiate from the present state, which stays as it is.

        The step descends the mean of their hypergradients: one situation for each task of a meta-batch.
        """
