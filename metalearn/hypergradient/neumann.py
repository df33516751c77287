"""Implicit hypergradients with the inverse Hessian as a Neumann series."""

import torch

from metalearn.hypergradient.base import Estimate, HyperGradient, Segment
from metalearn.hypergradient.config import NeumannOptions
from metalearn.hypergradient.guard import second_order
from metalearn.hypergradient.implicit import Product, check_end, differentiate_end
from metalearn.problem import Inner, Problem
from metalearn.task import Metrics
from metalearn.tree import Tree, add, scale


class Neumann(HyperGradient):
    """The implicit function theorem at the end of a segment (Lorraine et al. 2020, algorithms 1-3).

    The run is taken to have converged: grad = d outer / d meta - q d2 inner_loss / (d w d meta) with
    q = step sum_{i=0}^{iterations} (I - step (H + damping I))^i v and v = d outer / d w, H the Hessian of the
    inner loss on the last inner batch. q tends to (H + damping I)^-1 v if every eigenvalue is between 0 and
    2 / step, and the error falls as (1 - step x smallest)^(iterations + 1). With gradient descent at the
    rate `step` it is what an unroll of iterations + 1 steps at a fixed point gives.

    Exact as far as the run has converged on that batch and the series too: see hypergradient/residual, which
    grows above 1 where step is too large or curvature negative. What `update` does by itself is not seen: a
    learning rate, which does not move a fixed point, has gradient 0; a weight decay c in `update` belongs to
    the fixed point's equation, and damping = c accounts for it exactly.

    Cost: the inner run without a graph, then iterations + 1 Hessian-vector products; memory of one inner
    loss and its gradient, whatever the number of steps.
    """

    def __init__(self, options: NeumannOptions) -> None:
        self.iterations, self.step, self.damping = options.iterations, options.step, options.damping

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

    @second_order("neumann")
    def estimate(
        self,
        problem: Problem,
        meta: Tree,
        carry: Inner,
        segment: Segment,
        rng: torch.Generator,  # noqa: ARG002
    ) -> Estimate:
        """The hypergradient at the segment's end. Raises UserError for scores anywhere else."""
        check_end("neumann", problem, segment)
        return differentiate_end(problem, meta, carry, segment, self.damping, self._solve)

    def _solve(self, product: Product, v: Tree) -> tuple[Tree, Metrics]:
        return series(product, v, self.iterations, self.step), {}


def series(product: Product, v: Tree, iterations: int, step: float) -> Tree:
    """step sum_{i=0}^{iterations} (I - step A)^i v for `product` u -> A u; pure."""
    term = total = v
    for _ in range(iterations):
        term = add(term, product(term), -step)
        total = add(total, term)
    return scale(total, step)
