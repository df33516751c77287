"""Hypergradients by the implicit function theorem, at the end of an inner run: all but the linear solver."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import Estimate, Segment, pull_back
from metalearn.hypergradient.guard import check_twice_differentiable
from metalearn.problem import Inner, Problem, inner_step
from metalearn.registry import UserError
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree, add, detach, dot, gradient, norm, require_grad, zeros_like

Product = Callable[[Tree], Tree]  # u -> A u, for a symmetric matrix A
Solver = Callable[[Product, Tree], tuple[Tree, Metrics]]  # (A, v) -> about A^-1 v, and what it reports


def check_end(name: str, problem: Problem, segment: Segment) -> None:
    """Raises UserError for what has no implicit hypergradient: `name` is the estimator's."""
    steps = len(segment.inner)
    if not steps or set(segment.outer) != {steps}:
        raise UserError(
            f"{name}: got outer batches at steps {_places(segment)} of {steps}; it takes one, after the "
            "last of one or more inner steps, where the run is taken to have converged; for others use "
            "hypergradient=unrolled"
        )
    if not problem.second_derivatives:
        raise UserError(
            f"{name}: the problem's gradients are constants (second_derivatives is off), so there is no "
            "curvature to solve with; switch them on or use hypergradient=unrolled"
        )


def _places(segment: Segment) -> str:
    """The scored steps, the first few of them."""
    places = [str(step) for step in segment.outer]
    return ", ".join(places if len(places) <= 3 else [*places[:2], "...", places[-1]])


def differentiate_end(
    problem: Problem, meta: Tree, carry: Inner, segment: Segment, damping: float, solve: Solver
) -> Estimate:
    """Runs the segment without a graph and differentiates its end w as if it were the inner optimum:

        grad = d outer / d meta - q d2 inner_loss / (d w d meta),     (H + damping I) q = d outer / d w,

    with H the Hessian of `inner_loss` on the last inner batch. The metric hypergradient/residual is
    ||(H + damping I) q - v|| / ||v|| for v = d outer / d w, computed from q; 0 for v = 0.
    """
    inner = _run(problem, detach(meta), carry.detach(), segment)
    meta, params = require_grad(meta), require_grad(inner.params)
    loss = problem.outer_loss(meta, params, segment.outer[len(segment.inner)])
    direct, v = pull_back([loss], None, meta, params)

    slopes = _slopes(problem, meta, params, segment.inner[-1])
    product = damped_hessian(slopes, params, damping)
    q, metrics = solve(product, v)
    metrics = {**metrics, "hypergradient/residual": residual(product, q, v)}
    through = pull_back(list(slopes.values()), list(q.values()), meta)[0]
    return Estimate(add(direct, through, -1.0), loss.detach(), inner, metrics)


def damped_hessian(slopes: Tree, params: Tree, damping: float) -> Product:
    """u -> (d slopes / d params + damping I) u, for slopes that are a gradient by `params`.

    Keeps their graph.
    """

    def product(u: Tree) -> Tree:
        along = dot(slopes, u)
        curved = gradient(along, params, retain_graph=True) if along.requires_grad else zeros_like(params)
        return add(curved, u, damping)

    return product


def residual(product: Product, q: Tree, v: Tree) -> Float[Tensor, ""]:
    """||A q - v|| / ||v||, computed anew; ||A q|| for v = 0, which a solver leaves at 0."""
    length = norm(v)
    return norm(add(product(q), v, -1.0)) / torch.where(length > 0, length, 1.0)


def _run(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> Inner:
    for batch in segment.inner:
        inner = inner_step(problem, meta, inner, batch).detach()
    return inner


def _slopes(problem: Problem, meta: Tree, params: Tree, batch: Batch) -> Tree:
    """The inner gradient, differentiable in both trees."""
    loss = problem.inner_loss(meta, params, batch)
    check_twice_differentiable(loss, params)
    return gradient(loss, params, create_graph=True)
