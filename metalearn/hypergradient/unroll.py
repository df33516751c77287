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
from metalearn.problem import Inner, Problem, inner_step, loss_and_gradient
from metalearn.registry import UserError
from metalearn.task import Batch
from metalearn.tree import Tree, detach, require_grad


def unroll(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> tuple[Float[Tensor, ""], Inner]:
    """The sum of outer losses over a segment and the inner run's end, differentiable in `meta` and `inner`.

    Where one pass serves both levels (`problem.shared_loss` and outer[t] is inner[t]) the loss is computed
    once. Without second derivatives such a loss is also differentiated at once, and only its gradient stays
    in the graph: nothing is propagated back through what the inner run trains (L2L fig. 2).
    """
    check_segment(segment)
    losses, inner = _run(problem, meta, inner, segment)
    return torch.stack(losses).sum(), inner


class Unrolled(HyperGradient):
    """The exact hypergradient: reverse mode through every inner step of the segment.

    A run longer than a segment goes on from the carry, whose history is cut: truncated backpropagation.
    Every operation of `inner_loss` needs a second derivative; beware of `once_differentiable` functions:
    `torch.autograd.grad` never reaches their error and drops their term in silence (torch 2.13).
    """

    def __init__(self, options: UnrolledOptions) -> None:
        self.options = options

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

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
        loss, inner = unroll(problem, meta, carry.detach(), segment)
        return Estimate(meta_gradient(loss, meta), loss.detach(), inner.detach())


class Truncated(HyperGradient):
    """Reverse mode through the last `window` inner steps of the segment; the ones before count as constants.

    Outer losses before the window contribute their partial derivative by meta.
    """

    def __init__(self, options: TruncatedOptions) -> None:
        self.window = options.window

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

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
                "steps; lower window or raise the steps"
            )
        meta, inner, losses = require_grad(meta), carry.detach(), []
        for step, batch in enumerate(segment.inner[:start]):
            if step in segment.outer:
                losses.append(problem.outer_loss(meta, inner.params, segment.outer[step]))
            inner = inner_step(problem, detach(meta), inner, batch).detach()
        outer = {step - start: batch for step, batch in segment.outer.items() if step >= start}
        tail, inner = _run(problem, meta, inner, Segment(segment.inner[start:], outer))
        loss = torch.stack(losses + tail).sum()
        return Estimate(meta_gradient(loss, meta), loss.detach(), inner.detach())


def _run(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> tuple[list[Tensor], Inner]:
    """The outer losses over a segment, in order, and the inner run's end, all in one graph."""
    losses = []
    for step, batch in enumerate(segment.inner):
        scores, grads = _visit(problem, meta, inner.params, batch, segment.outer.get(step))
        losses += scores
        inner = problem.update(meta, inner, grads)
    last = segment.outer.get(len(segment.inner))
    if last is not None:
        losses.append(problem.outer_loss(meta, inner.params, last))
    return losses, inner


def _visit(
    problem: Problem, meta: Tree, params: Tree, batch: Batch, scored: Batch | None
) -> tuple[list[Tensor], Tree]:
    """The outer loss at `params`, if one is asked for, and the gradient for the inner step from there."""
    shared = problem.shared_loss and scored is batch
    if problem.second_derivatives:
        loss, grads = loss_and_gradient(problem, meta, params, batch, create_graph=True)
    elif shared:
        loss, grads = _injected(problem, meta, params, batch)
    else:
        loss, grads = loss_and_gradient(problem, detach(meta), params, batch)
    if scored is None:
        return [], grads
    return [loss if shared else problem.outer_loss(meta, params, scored)], grads


def _injected(problem: Problem, meta: Tree, params: Tree, batch: Batch) -> tuple[Tensor, Tree]:
    """The loss with its gradients by `params` and `meta` as constants, and the former.

    The value is the loss; backward gives what the loss would, without its graph, which is freed here.
    """
    copies = require_grad(params)
    entries = [*params.values(), *(leaf for leaf in meta.values() if leaf.requires_grad)]
    leaves = [*copies.values(), *entries[len(params) :]]
    loss = problem.inner_loss(meta, copies, batch)
    slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
    linear = [
        (slope * (entry - entry.detach())).sum()
        for entry, slope in zip(entries, slopes, strict=True)
        if slope is not None and entry.requires_grad
    ]
    grads = {
        key: torch.zeros_like(leaf) if slope is None else slope
        for (key, leaf), slope in zip(params.items(), slopes, strict=False)
    }
    return sum(linear, loss.detach()), grads
