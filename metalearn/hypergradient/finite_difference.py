"""The one-step hypergradient without second derivatives (DARTS)."""

import torch
from torch import Tensor

from metalearn.hypergradient.base import (
    Estimate,
    HyperGradient,
    Segment,
    check_segment,
    meta_gradient,
    pull_back,
)
from metalearn.hypergradient.config import FiniteDifferenceOptions
from metalearn.problem import Inner, Problem, loss_and_gradient
from metalearn.registry import UserError
from metalearn.task import Batch
from metalearn.tree import Tree, add, detach, norm, require_grad, scale


class FiniteDifference(HyperGradient):
    """One inner step, differentiated by a central difference (Liu et al. 2019, eq. 7-8).

    With g the inner gradient at w and w' = update(meta, w, g), the hypergradient is

        d outer(w') / d meta  +  v * d update / d meta  +  u * d g / d meta,     v = d outer(w') / d w',

    where u = v * d update / d g is v pulled back through the update, whatever the update is. The last term
    is the difference of `inner_loss`'s meta-gradient at w + p and w - p, p = radius * u / ||u||, on the same
    batch, times ||u|| / (2 radius). Plain SGD has u = -xi v, so that p = -eps v with the paper's
    eps = radius / ||v||, and the term is -xi times the paper's quotient (8), exactly. Momentum and weight
    decay enter through w' and u.
    """

    differentiates_twice = False

    def __init__(self, options: FiniteDifferenceOptions) -> None:
        self.radius = options.radius

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
        """The hypergradient over a segment of one inner step. Raises UserError for any other number."""
        _check_one_step(segment)
        meta, inner, batch = require_grad(meta), carry.detach(), segment.inner[0]
        _, grads = loss_and_gradient(problem, detach(meta), inner.params, batch)
        grads = require_grad(grads)
        after = problem.update(meta, inner, grads)

        grad, v, loss = _outer_gradient(problem, meta, inner.params, after.params, segment)
        through_update, u = pull_back(list(after.params.values()), list(v.values()), meta, grads)
        grad = add(grad, through_update)
        if problem.second_derivatives:
            grad = add(grad, self._difference(problem, meta, inner.params, u, batch))
        return Estimate(grad, loss, after.detach())

    def _difference(self, problem: Problem, meta: Tree, params: Tree, u: Tree, batch: Batch) -> Tree:
        """u * d2 inner_loss / (d params d meta); zeros for u = 0."""
        length = norm(u)
        unit = self.radius / length.clamp_min(torch.finfo(length.dtype).tiny)

        def at(side: Tensor) -> Tree:
            return meta_gradient(problem.inner_loss(meta, add(params, u, side), batch), meta)

        return quotient(at(unit), at(-unit), length, self.radius)


def quotient(positive: Tree, negative: Tree, length: Tensor, radius: float) -> Tree:
    """The central difference of two values at +- radius from the middle, for a direction of `length`."""
    return scale(add(positive, negative, -1.0), length / (2 * radius))


def _check_one_step(segment: Segment) -> None:
    if len(segment.inner) != 1:
        raise UserError(
            f"finite_difference: got {len(segment.inner)} inner steps, it takes exactly 1; "
            "set the method's inner steps to 1 or use hypergradient=unrolled"
        )
    check_segment(segment)


def _outer_gradient(
    problem: Problem, meta: Tree, before: Tree, after: Tree, segment: Segment
) -> tuple[Tree, Tree, Tensor]:
    """The sum of outer losses by meta alone, by the parameters after the step, and its value."""
    places = [detach(before), require_grad(after)]
    losses = [problem.outer_loss(meta, places[step], batch) for step, batch in segment.outer.items()]
    loss = torch.stack(losses).sum()
    grad, v = pull_back([loss], None, meta, places[1])
    return grad, v, loss.detach()
