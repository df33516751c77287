"""Hypergradients by reverse mode through the inner run itself."""

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import (
    Estimate,
    HyperGradient,
    Segment,
    check_segment,
    meta_gradient,
)
from metalearn.hypergradient.config import TruncatedOptions, UnrolledOptions
from metalearn.hypergradient.guard import second_order
from metalearn.hypergradient.inner_run import run
from metalearn.hypergradient.recompute import unroll_recomputed
from metalearn.problem import Inner, Problem, inner_step
from metalearn.registry import UserError
from metalearn.tree import Tree, detach, require_grad


def unroll(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> tuple[Float[Tensor, ""], Inner]:
    """The sum of outer losses over a segment and the inner run's end, differentiable in meta and inner."""
    check_segment(segment)
    losses, inner = run(problem, meta, inner, segment)
    return torch.stack(losses).sum(), inner


class Unrolled(HyperGradient):
    """The exact hypergradient: reverse mode through every inner step of the segment.

    A run longer than a segment goes on from the carry, whose history is cut: truncated backpropagation.
    Every operation of `inner_loss` needs a second derivative; where one is missing a UserError says so.

    Cost for K inner steps: about 5 evaluations of the inner loss a step, and memory for K steps. With
    `recompute` (Griewank and Walther 2000, with one level): 2 evaluations a step more, and memory for
    sqrt(K) states and sqrt(K) steps. Both give the same numbers to rounding.
    """

    def __init__(self, options: UnrolledOptions) -> None:
        self.unroll = unroll_recomputed if options.recompute else unroll

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

    @second_order("unrolled")
    def estimate(
        self,
        problem: Problem,
        meta: Tree,
        carry: Inner,
        segment: Segment,
        rng: torch.Generator,  # noqa: ARG002
    ) -> Estimate:
        """The hypergradient over the segment; the carry is where it ended."""
        meta = require_grad(meta)
        loss, inner = self.unroll(problem, meta, carry.detach(), segment)
        return Estimate(meta_gradient(loss, meta), loss.detach(), inner.detach())


class Truncated(HyperGradient):
    """Reverse mode through the last `window` inner steps of the segment; the ones before count as constants.

    Outer losses before the window contribute their partial derivative by meta. Cost: as `Unrolled` for the
    window, one first-order step for each step before it; memory for the window (Shaban et al. 2019).
    """

    def __init__(self, options: TruncatedOptions) -> None:
        self.window = options.window

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

    @second_order("truncated")
    def estimate(
        self,
        problem: Problem,
        meta: Tree,
        carry: Inner,
        segment: Segment,
        rng: torch.Generator,  # noqa: ARG002
    ) -> Estimate:
        """As `Unrolled`. Raises UserError for a window longer than the segment."""
        check_segment(segment)
        start = len(segment.inner) - self.window
        if start < 0:
            raise UserError(
                f"truncated: window {self.window} is longer than the segment of {len(segment.inner)} inner "
                "steps; lower hypergradient.window, or raise the method's inner_steps, horizon or unroll"
            )
        meta, inner, losses = require_grad(meta), carry.detach(), []
        for step, batch in enumerate(segment.inner[:start]):
            if step in segment.outer:
                losses.append(problem.outer_loss(meta, inner.params, segment.outer[step]))
            inner = inner_step(problem, detach(meta), inner, batch).detach()
        outer = {step - start: batch for step, batch in segment.outer.items() if step >= start}
        tail, inner = run(problem, meta, inner, Segment(segment.inner[start:], outer))
        loss = torch.stack(losses + tail).sum()
        return Estimate(meta_gradient(loss, meta), loss.detach(), inner.detach())
