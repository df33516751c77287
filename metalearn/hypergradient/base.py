"""One way to get d outer / d meta, behind one signature."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.problem import Inner, Problem
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree, zeros_like

Carry = Any  # what an estimator keeps between calls: an Inner, or particles of them


class Segment(NamedTuple):
    """The batches that one estimate sees: K inner steps, and where the run is scored.

    `outer[t]` is scored on the parameters after t inner steps, 0 <= t <= K; the meta-objective is the sum.
    DARTS: `Segment([train], {1: valid})`.
    """

    inner: Sequence[Batch]
    outer: Mapping[int, Batch]

    def split(self, length: int) -> "list[Segment]":
        """Parts of `length` inner steps, the last one shorter if need be; each outer batch is in one of them.

        A score between two parts belongs to the later one, the score after the last step to the last.
        """
        steps, parts = len(self.inner), []
        for start in range(0, steps, length):
            end = min(start + length, steps)
            reached = end + (end == steps)
            outer = {step - start: batch for step, batch in self.outer.items() if start <= step < reached}
            parts.append(Segment(self.inner[start:end], outer))
        return parts


class Estimate(NamedTuple):
    """A hypergradient and what came with it."""

    grad: Tree  # d (sum of outer losses) / d meta
    loss: Float[Tensor, ""]  # the sum of outer losses, detached
    carry: Carry  # where the next segment starts, detached
    metrics: Metrics = {}


class HyperGradient(ABC):
    """An estimator of d outer / d meta; it holds no state but its options.

    One that needs second derivatives of the inner loss works under `guard.second_order(its name)`; the others
    say so, and networks may then use kernels that are differentiated once.
    """

    differentiates_twice: bool = True

    @abstractmethod
    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Carry:
        """A fresh carry: for most estimators one inner run at its start."""

    @abstractmethod
    def estimate(
        self, problem: Problem, meta: Tree, carry: Carry, segment: Segment, rng: torch.Generator
    ) -> Estimate:
        """The hypergradient over `segment`, from `carry`. `rng` feeds estimators that sample."""


def check_segment(segment: Segment) -> None:
    """Raises ValueError for an outer batch at a step that the segment does not reach, or none at all."""
    steps = len(segment.inner)
    outside = [step for step in segment.outer if not 0 <= step <= steps]
    if outside or not segment.outer:
        raise ValueError(
            f"outer batches at steps {list(segment.outer)} of {steps}; allowed: 0 to {steps}, one or more"
        )


def pull_back(outputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None, *trees: Tree) -> list[Tree]:
    """sum_i cotangents[i] * d outputs[i] / d tree for each tree, frees the graph.

    Leaves that no output depends on get zeros, also where nothing is differentiable at all. `cotangents`
    is None for scalars.
    """
    weights = [None] * len(outputs) if cotangents is None else cotangents
    pairs = [(output, w) for output, w in zip(outputs, weights, strict=True) if output.requires_grad]
    leaves = [leaf for tree in trees for leaf in tree.values()]
    if not pairs or not leaves:
        return [zeros_like(tree) for tree in trees]
    roots, seeds = zip(*pairs, strict=True)
    grads = iter(torch.autograd.grad(roots, leaves, seeds, allow_unused=True, materialize_grads=True))
    return [{key: next(grads) for key in tree} for tree in trees]


def meta_gradient(loss: Float[Tensor, ""], meta: Tree) -> Tree:
    """d loss / d meta, zeros where there is no dependence; frees the graph."""
    return pull_back([loss], None, meta)[0]


__all__ = [
    "Carry",
    "Estimate",
    "HyperGradient",
    "Inner",
    "Segment",
    "check_segment",
    "meta_gradient",
    "pull_back",
]
