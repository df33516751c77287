"""The hypergradient without the inner run's answer to the meta-parameters."""

import torch

from metalearn.hypergradient.base import Estimate, HyperGradient, Segment, check_segment, meta_gradient
from metalearn.hypergradient.config import FirstOrderOptions
from metalearn.problem import Inner, Problem
from metalearn.tree import Tree, require_grad


class FirstOrder(HyperGradient):
    """d outer / d meta at the weights as they are (Liu et al. 2019, eq. 7 with xi = 0).

    No inner step is taken: every outer batch is scored where the segment starts, and the carry comes back
    as it was, so moving the inner run is left to the caller.
    """

    differentiates_twice = False

    def __init__(self, options: FirstOrderOptions) -> None:
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
        """The partial derivative by meta of the sum of outer losses."""
        check_segment(segment)
        meta, inner = require_grad(meta), carry.detach()
        losses = [problem.outer_loss(meta, inner.params, batch) for batch in segment.outer.values()]
        loss = torch.stack(losses).sum()
        return Estimate(meta_gradient(loss, meta), loss.detach(), inner)
