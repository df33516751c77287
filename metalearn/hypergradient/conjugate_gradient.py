"""Implicit hypergradients with the inverse Hessian by conjugate gradients."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metalearn.hypergradient.base import Estimate, HyperGradient, Segment
from metalearn.hypergradient.config import ConjugateGradientOptions
from metalearn.hypergradient.guard import second_order
from metalearn.hypergradient.implicit import Product, check_end, differentiate_end
from metalearn.problem import Inner, Problem
from metalearn.task import Metrics
from metalearn.tree import Tree, add, dot, tree_map, zeros_like

ROUNDING = 10  # times machine epsilon: what is smaller, beside its like, counts as zero


class ConjugateGradient(HyperGradient):
    """The implicit function theorem at the end of a segment (Pedregosa 2016; Rajeswaran et al. 2019).

    The run is taken to have converged: grad = d outer / d meta - q d2 inner_loss / (d w d meta) with
    (H + damping I) q = d outer / d w, H the Hessian of the inner loss on the last inner batch, solved by
    `iterations` steps of conjugate gradients (Hestenes and Stiefel 1952): exact to rounding after as many as
    there are distinct eigenvalues, where these are positive. In a direction of negative curvature, which an
    inner minimum has not, the solver stops: q stays as it is there (0 in the first step) and the metric
    hypergradient/negative_curvature is 1, else 0; more damping helps, or more inner steps.

    Exact as far as the run has converged on that batch; hypergradient/residual is the solver's share of the
    error. What `update` does by itself is not seen: a learning rate, which does not move a fixed point, has
    gradient 0; a weight decay c in `update` belongs to the fixed point's equation, and damping = c accounts
    for it exactly.

    Cost: the inner run without a graph, then iterations + 1 Hessian-vector products; memory of one inner
    loss and its gradient, whatever the number of steps.
    """

    def __init__(self, options: ConjugateGradientOptions) -> None:
        self.iterations, self.damping = options.iterations, options.damping

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

    @second_order("conjugate_gradient")
    def estimate(
        self,
        problem: Problem,
        meta: Tree,
        carry: Inner,
        segment: Segment,
        rng: torch.Generator,  # noqa: ARG002
    ) -> Estimate:
        """The hypergradient at the segment's end. Raises UserError for scores anywhere else."""
        check_end("conjugate_gradient", problem, segment)
        return differentiate_end(problem, meta, carry, segment, self.damping, self._solve)

    def _solve(self, product: Product, v: Tree) -> tuple[Tree, Metrics]:
        q, negative = solve(product, v, self.iterations)
        return q, {"hypergradient/negative_curvature": negative.to(next(iter(v.values())).dtype)}


class Solution(NamedTuple):
    """What conjugate gradients found."""

    q: Tree  # about A^-1 v
    negative: Bool[Tensor, ""]  # whether they stopped in a direction of negative curvature


class _State(NamedTuple):
    """Where the recursion stands."""

    q: Tree
    rest: Tree  # v - A q
    square: Float[Tensor, ""]  # ||rest||^2
    direction: Tree
    steepest: Float[Tensor, ""]  # largest curvature of a direction of length 1 so far
    negative: Bool[Tensor, ""]  # curvature of `direction`, which then stays


def solve(product: Product, v: Tree, iterations: int) -> Solution:
    """`iterations` steps towards A q = v for `product` u -> A u, from q = 0; A symmetric.

    Pure, without autograd, in-place operations or host synchronisation, so that it may run under
    `torch.func.vmap`. Steps after the solution (v = 0 included) leave it as it is, and so do those after a
    direction of negative or, to rounding, no curvature.
    """
    square = dot(v, v)
    small = ROUNDING * torch.finfo(square.dtype).eps
    zero = torch.zeros_like(square)
    state = _State(zeros_like(v), v, square, v, zero, zero > 0)
    for _ in range(iterations):
        state = step(state, product(state.direction), state.square > square * small**2, small)
    return Solution(state.q, state.negative)


def step(state: _State, image: Tree, unsolved: Bool[Tensor, ""], small: float) -> _State:
    """One step along the direction, whose image under A is `image`; none where solved or not curved."""
    curvature, length = dot(state.direction, image), dot(state.direction, state.direction)
    steepest = torch.maximum(state.steepest, quotient(curvature.abs(), length, length > 0))
    flat = small * steepest * length
    going, negative = unsolved & (curvature > flat), unsolved & (curvature < -flat)
    distance = quotient(state.square, curvature, going)
    q, rest = add(state.q, state.direction, distance), remainder(state.rest, image, distance)
    square = dot(rest, rest)
    turned = add(rest, state.direction, turn(square, state.square, going))
    direction = tree_map(lambda new, old: torch.where(going, new, old), turned, state.direction)
    return _State(q, rest, square, direction, steepest, negative)


def remainder(rest: Tree, image: Tree, distance: Tensor) -> Tree:
    """v - A q after a move of `distance` along a direction with this image."""
    return add(rest, image, -distance)


def turn(square: Tensor, before: Tensor, going: Tensor) -> Tensor:
    """How much of the old direction goes into the new one: ||new rest||^2 / ||rest before||^2."""
    return quotient(square, before, going)


def quotient(above: Tensor, below: Tensor, valid: Tensor) -> Tensor:
    """above / below where `valid`, else 0."""
    return torch.where(valid, above / torch.where(valid, below, 1.0), 0.0)
