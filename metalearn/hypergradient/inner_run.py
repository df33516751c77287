"""An inner run in one graph: what every exact estimator differentiates."""

import torch
from torch import Tensor

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.guard import check_twice_differentiable
from metalearn.hypergradient.replay import run_replayed
from metalearn.problem import Batched, Inner, Problem, loss_and_gradient
from metalearn.task import Batch
from metalearn.tree import Tree, detach, require_grad


def run(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> tuple[list[Tensor], Inner]:
    """The outer losses over a segment, in order, and the inner run's end, all in one graph.

    Where one pass serves both levels (`problem.shared_loss` and outer[t] is inner[t]) the loss is computed
    once. Without second derivatives such a loss is also differentiated at once, and only its gradient stays
    in the graph: nothing is propagated back through what the inner run trains (L2L fig. 2). Raises UserError
    where autograd would drop a second derivative.
    """
    replayed = run_replayed(problem, meta, inner, segment)
    if replayed is not None:
        return replayed
    losses = []
    if problem.second_derivatives:
        inner = Inner(_differentiable(inner.params), inner.slots)
    for step, batch in enumerate(segment.inner):
        scores, grads = _visit(problem, meta, inner.params, batch, segment.outer.get(step), step == 0)
        losses += scores
        inner = problem.update(meta, inner, grads)
    last = segment.outer.get(len(segment.inner))
    if last is not None:
        losses.append(_last(problem, meta, inner.params, last))
    return losses, inner


def _differentiable(tree: Tree) -> Tree:
    """The same values; those outside any graph become leaves of one."""
    return {key: leaf if leaf.requires_grad else leaf.detach().requires_grad_() for key, leaf in tree.items()}


def _visit(
    problem: Problem, meta: Tree, params: Tree, batch: Batch, scored: Batch | None, check: bool
) -> tuple[list[Tensor], Tree]:
    """The outer loss at `params`, if one is asked for, and the gradient for the inner step from there."""
    shared = problem.shared_loss and scored is batch
    if problem.second_derivatives:
        loss, grads = loss_and_gradient(problem, meta, params, batch, create_graph=True)
        if check:
            check_twice_differentiable(loss, params)
    elif scored is batch and isinstance(problem, Batched):
        loss, slopes, grads = problem.score_and_gradients(params, batch)
        return [_followed(loss, slopes, params)], grads
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
        _linear(slope, entry)
        for entry, slope in zip(entries, slopes, strict=True)
        if slope is not None and entry.requires_grad
    ]
    grads = {
        key: torch.zeros_like(leaf) if slope is None else slope
        for (key, leaf), slope in zip(params.items(), slopes, strict=False)
    }
    return sum(linear, loss.detach()), grads


def _last(problem: Problem, meta: Tree, params: Tree, batch: Batch) -> Tensor:
    """The outer loss at the end of a segment."""
    if problem.second_derivatives or not isinstance(problem, Batched):
        return problem.outer_loss(meta, params, batch)
    loss, slopes, _ = problem.score_and_gradients(params, batch)
    return _followed(loss, slopes, params)


def _followed(loss: Tensor, slopes: Tree, params: Tree) -> Tensor:
    """`loss`, with `slopes` as its gradient by `params`."""
    return sum((_linear(slopes[key], leaf) for key, leaf in params.items()), loss)


def _linear(slope: Tensor, entry: Tensor) -> Tensor:
    """0, with `slope` as its gradient by `entry`."""
    return (slope * (entry - entry.detach())).sum()
