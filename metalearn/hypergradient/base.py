"""One way to get d outer / d meta, behind one signature."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.problem import Inner, Problem
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree

Carry = Any  # what an estimator keeps between calls: an Inner, or particles of them


class Segment(NamedTuple):
    """The batches that one estimate sees: K inner steps, and where the run is scored.

    `outer[t]` is scored on the parameters after t inner steps, 0 <= t <= K; the meta-objective is the sum.
    DARTS: `Segment([train], {1: valid})`.
    """

    inner: Sequence[Batch]
    outer: Mapping[int, Batch]


class Estimate(NamedTuple):
    """A hypergradient and what came with it."""

    grad: Tree  # d (sum of outer losses) / d meta
    loss: Float[Tensor, ""]  # the sum of outer losses, detached
    carry: Carry  # where the next segment starts, detached
    metrics: Metrics = {}


class HyperGradient(ABC):
    """An estimator of d outer / d meta; it holds no state but its options."""

    @abstractmethod
    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Carry:
        """A fresh carry: for most estimators one inner run at its start."""

    @abstractmethod
    def estimate(
        self, problem: Problem, meta: Tree, carry: Carry, segment: Segment, rng: torch.Generator
    ) -> Estimate:
        """The hypergradient over `segment`, from `carry`. `rng` feeds estimators that sample."""


__all__ = ["Carry", "Estimate", "HyperGradient", "Inner", "Segment"]
