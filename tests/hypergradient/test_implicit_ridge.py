# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Implicit hypergradients of ridge regression, whose optimum is known in closed form."""

import math

import pytest
import torch

from metalearn.hypergradient.base import Segment
from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem, inner_step
from metalearn.rng import generator
from metalearn.task import Batch

DOUBLE = {"dtype": torch.float64}
RESIDUAL = "hypergradient/residual"
NAMES = ["neumann", "conjugate_gradient"]


def estimate(way, problem, meta, segment, carry=None):
    carry = way.init(problem, meta, generator()) if carry is None else carry
    return way.estimate(problem, meta, carry, segment, generator())


class Ridge(Problem):
    """Ridge regression; meta: the log penalty of each weight, a log weight of the outer loss's penalty."""

    def __init__(self, update):
        self.kind = update

    def init(self, meta, rng):
        params = {"w": torch.zeros(4, **DOUBLE)}
        return Inner(params, adam_slots(params) if self.kind == "adam" else sgd_slots(params))

    def inner_loss(self, meta, params, batch):
        rest = batch.x @ params["w"] - batch.y
        return 0.5 * (rest**2).mean() + 0.5 * (meta["penalty"].exp() * params["w"] ** 2).sum()

    def update(self, meta, inner, grads):
        rate = meta["rate"].exp()
        if self.kind == "adam":  # an epsilon so large that a fixed rate settles
            return adam(*inner, grads, rate, (0.8, 0.9), 1.0, 0.0)
        return sgd(*inner, grads, rate, 0.8 if self.kind == "momentum" else 0.0, 0.0)

    def outer_loss(self, meta, params, batch):
        rest = batch.x @ params["w"] - batch.y
        return 0.5 * (rest**2).mean() + meta["direct"].exp() * (params["w"] ** 4).sum()


def ridge_meta():
    return {
        "penalty": torch.tensor([-2.0, -1.0, 0.0, -1.5], **DOUBLE),
        "direct": torch.tensor(-2.0, **DOUBLE),
        "rate": torch.tensor(-0.7, **DOUBLE),
    }


def ridge_segment(steps):
    rng = generator("ridge")
    draws = [torch.randn(12, 5, generator=rng, **DOUBLE) for _ in range(2)]
    inner, outer = (Batch(d[:, :4], d[:, 4], ("ridge",)) for d in draws)
    return Segment([inner] * steps, {steps: outer})


def optimum(meta, batch):
    """w* in closed form, differentiable in meta."""
    gram = batch.x.T @ batch.x / len(batch.x)
    return torch.linalg.solve(gram + torch.diag(meta["penalty"].exp()), batch.x.T @ batch.y / len(batch.x))


@pytest.mark.parametrize("update", ["sgd", "momentum", "adam"])
def test_agrees_with_the_closed_form_and_a_converged_unroll(update, estimator, relative_error):
    """Ridge regression with a penalty for each weight, three optimizers on the way to the one optimum."""
    problem, meta, segment = Ridge(update), ridge_meta(), ridge_segment(300)
    leaves = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    best = optimum(leaves, segment.inner[0])
    loss = problem.outer_loss(leaves, {"w": best}, segment.outer[300])
    wanted = dict(
        zip(
            ("penalty", "direct"),
            torch.autograd.grad(loss, [leaves["penalty"], leaves["direct"]]),
            strict=True,
        )
    )
    unrolled = estimate(estimator("unrolled"), problem, meta, segment)
    for way in (estimator("neumann", 300, step=0.5), estimator("conjugate_gradient", 4)):
        found = estimate(way, problem, meta, segment)
        assert relative_error(found.grad, wanted) < 1e-8
        assert relative_error(found.grad, unrolled.grad) < 1e-8
        assert float(found.metrics[RESIDUAL]) < 1e-10
        assert (found.grad["rate"] == 0).all()
        torch.testing.assert_close(found.carry, unrolled.carry, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.loss, unrolled.loss)
        torch.testing.assert_close(found.carry.params["w"], best.detach(), rtol=1e-9, atol=1e-10)


def test_a_run_that_has_not_converged_is_seen_to_differ(estimator, relative_error):
    """The agreement above is not that of two estimators with one mistake."""
    problem, meta = Ridge("sgd"), ridge_meta()
    short = ridge_segment(3)
    exact = estimate(estimator("unrolled"), problem, meta, short).grad
    assert (
        relative_error(estimate(estimator("conjugate_gradient", 4), problem, meta, short).grad, exact) > 0.1
    )


def test_neumann_is_the_unroll_of_gradient_descent_at_the_optimum(estimator, relative_error):
    """Terms of the series are steps of an unroll from a fixed point (Lorraine et al. 2020, theorem 2)."""
    problem, meta, segment = Ridge("sgd"), ridge_meta(), ridge_segment(7)
    start = Inner({"w": optimum(meta, segment.inner[0])}, problem.init(meta, generator()).slots)
    exact = estimate(estimator("unrolled"), problem, meta, segment, start)
    found = estimate(estimator("neumann", 6, step=math.exp(-0.7)), problem, meta, segment, start)
    assert relative_error(found.grad, {key: exact.grad[key] for key in ("penalty", "direct")}) < 1e-10
    assert float(found.metrics[RESIDUAL]) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_curvature_is_that_of_the_last_batch(name, estimator):
    """Two steps on two batches: as one step on the second from where the first has led."""
    problem, meta, way = Ridge("momentum"), ridge_meta(), estimator(name, 3)
    first, last = ridge_segment(1).inner[0], ridge_segment(1).outer[1]
    scored = first._replace(y=first.y + 1)
    start = problem.init(meta, generator())
    between = inner_step(problem, meta, start, first).detach()
    whole = estimate(way, problem, meta, Segment([first, last], {2: scored}), start)
    rest = estimate(way, problem, meta, Segment([last], {1: scored}), between)
    torch.testing.assert_close(whole, rest, rtol=1e-12, atol=1e-14)
    other = estimate(way, problem, meta, Segment([first], {1: scored}), between)
    assert (whole.grad["penalty"] - other.grad["penalty"]).norm() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_results_are_detached_and_inputs_untouched(name, estimator):
    meta = {key: leaf.requires_grad_() for key, leaf in ridge_meta().items()}
    problem, segment, way = Ridge("momentum"), ridge_segment(4), estimator(name, 4)
    carry = way.init(problem, meta, generator())
    found = estimate(way, problem, meta, segment, carry)
    trees = [found.grad, found.metrics, *found.carry, {"loss": found.loss}]
    assert not any(leaf.requires_grad for tree in trees for leaf in tree.values())
    assert all(leaf.grad is None for leaf in meta.values())
    assert (carry.params["w"] == 0).all()
    assert not carry.params["w"].requires_grad
