# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Implicit hypergradients against closed forms, long unrolls and each other."""

import itertools

import pytest
import torch
from torch.autograd.function import once_differentiable

from metalearn.hypergradient.base import Segment
from metalearn.inner_optimizers import sgd
from metalearn.problem import Inner, Problem, inner_step
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch

DOUBLE = {"dtype": torch.float64}
SIZE = 6
RESIDUAL, NEGATIVE = "hypergradient/residual", "hypergradient/negative_curvature"
NAMES = ["neumann", "conjugate_gradient"]


def rotated(eigenvalues):
    """A symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    size = len(eigenvalues)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=generator("rotation"), **DOUBLE))[0]
    return vectors @ torch.diag(eigenvalues) @ vectors.T, vectors


class Bowl(Problem):
    """inner: (w - t) A (w - t) / 2, outer: v w, so that d outer / d t at the optimum w = t is v.

    The mixed derivative is -A: an estimate is A q for the solver's q.
    """

    def __init__(self, matrix, v, weight_decay=0.0):
        self.matrix, self.v, self.weight_decay = matrix, v, weight_decay

    def init(self, meta, rng):
        return Inner({"w": torch.zeros_like(self.v)}, {})

    def inner_loss(self, meta, params, batch):
        away = params["w"] - meta["t"]
        return 0.5 * away @ self.matrix @ away

    def update(self, meta, inner, grads):
        return sgd(*inner, grads, meta["rate"].exp(), 0.0, self.weight_decay)

    def outer_loss(self, meta, params, batch):
        return params["w"] @ self.v


def bowl_meta():
    return {"t": torch.linspace(-1, 1, SIZE, **DOUBLE), "rate": torch.tensor(-3.0, **DOUBLE)}


def once():
    empty = Batch(torch.zeros(1), torch.zeros(1), ("once",))
    return Segment([empty], {1: empty})


def estimate(way, problem, meta, segment, carry=None):
    carry = way.init(problem, meta, generator()) if carry is None else carry
    return way.estimate(problem, meta, carry, segment, generator())


ILL = torch.logspace(-1, 1, SIZE, **DOUBLE)  # condition number 100, all eigenvalues distinct


def test_conjugate_gradients_residual_falls_until_it_is_solved(estimator):
    """With v = sum_i eigenvalue_i eigenvector_i the residual itself is seen to fall in every step.

    Conjugate gradients minimise the error in A's norm, which falls for any v: see test_implicit_solvers.py.
    """
    matrix, vectors = rotated(ILL)
    problem = Bowl(matrix, vectors @ ILL)
    found = [
        estimate(estimator("conjugate_gradient", steps), problem, bowl_meta(), once())
        for steps in range(1, SIZE + 1)
    ]
    residuals = [float(one.metrics[RESIDUAL]) for one in found]
    assert all(after < before for before, after in itertools.pairwise([1.0, *residuals]))
    assert residuals[-2] > 1e-3  # as many steps are needed as there are eigenvalues
    assert residuals[-1] < 1e-10
    torch.testing.assert_close(found[-1].grad["t"], problem.v, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("iterations", [0, 1, 10, 40])
def test_neumann_errs_as_its_rate_says(iterations, estimator):
    """In eigenvector i the share (1 - step eigenvalue_i)^(iterations + 1) of the gradient is missing."""
    matrix, vectors = rotated(ILL)
    v = vectors @ torch.linspace(1, 2, SIZE, **DOUBLE)
    way = estimator("neumann", iterations, step=0.15)
    found = estimate(way, Bowl(matrix, v), bowl_meta(), once())
    missing = (1 - 0.15 * ILL) ** (iterations + 1) * (vectors.T @ v)
    torch.testing.assert_close(vectors.T @ (v - found.grad["t"]), missing, rtol=1e-9, atol=1e-12)
    residual = missing.norm() / v.norm()
    torch.testing.assert_close(found.metrics[RESIDUAL], residual, rtol=1e-9, atol=1e-12)


def test_a_step_too_large_shows_in_the_residual(estimator):
    matrix, vectors = rotated(ILL)
    way = estimator("neumann", 30, step=0.3)  # 2 / 10 is the limit
    assert float(estimate(way, Bowl(matrix, vectors.sum(1)), bowl_meta(), once()).metrics[RESIDUAL]) > 1e3


@pytest.mark.parametrize("name", NAMES)
def test_damping_adds_to_every_eigenvalue(name, estimator):
    """grad = A (A + damping)^-1 v."""
    matrix, vectors = rotated(ILL)
    v = vectors.sum(1)
    way = estimator(name, {"neumann": 400}.get(name, SIZE), damping=0.5)
    found = estimate(way, Bowl(matrix, v), bowl_meta(), once())
    expected = vectors @ (ILL / (ILL + 0.5))
    torch.testing.assert_close(found.grad["t"], expected, rtol=1e-9, atol=1e-10)
    assert float(found.metrics[RESIDUAL]) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_damping_accounts_for_the_weight_decay_of_the_update(name, estimator):
    """With decay c the run ends at (A + c)^-1 A t; only damping = c gives that map's derivative."""
    matrix, vectors = rotated(ILL)
    problem, meta = Bowl(matrix, vectors.sum(1), weight_decay=0.3), bowl_meta()
    end = problem.init(meta, generator())
    for _ in range(1500):
        end = inner_step(problem, meta, end, once().inner[0]).detach()
    closed = torch.linalg.solve(matrix + 0.3 * torch.eye(SIZE, **DOUBLE), matrix)
    torch.testing.assert_close(end.params["w"], closed @ meta["t"])

    found = estimate(estimator(name, 600, damping=0.3), problem, meta, once(), end)
    torch.testing.assert_close(found.grad["t"], closed.T @ problem.v, rtol=1e-9, atol=1e-10)
    assert (found.grad["rate"] == 0).all()  # a fixed point does not know how fast it was reached


def test_a_zero_right_hand_side_gives_zeros(estimator):
    matrix, _ = rotated(ILL)
    for name in NAMES:
        found = estimate(estimator(name, 5), Bowl(matrix, torch.zeros(SIZE, **DOUBLE)), bowl_meta(), once())
        assert (found.grad["t"] == 0).all()
        assert all(float(value) == 0 for value in found.metrics.values())


def test_negative_curvature_is_reported_and_stops_the_solver(estimator):
    matrix, vectors = rotated(torch.tensor([-2.0, 0.5, 1.0, 2.0, 3.0, 4.0], **DOUBLE))
    for v, first in ((vectors[:, 0] + 0.1 * vectors[:, 1], True), (vectors.sum(1), False)):
        found = [
            estimate(estimator("conjugate_gradient", n), Bowl(matrix, v), bowl_meta(), once())
            for n in (1, 50)
        ]
        assert float(found[1].metrics[NEGATIVE]) == 1
        assert float(found[1].metrics[RESIDUAL]) > 0.1
        assert found[1].grad["t"].norm() < 10 * v.norm()
        if first:
            assert (found[1].grad["t"] == 0).all()
        else:
            assert float(found[0].metrics[NEGATIVE]) == 0
    damped = estimate(estimator("conjugate_gradient", 6, damping=3.0), Bowl(matrix, v), bowl_meta(), once())
    assert float(damped.metrics[NEGATIVE]) == 0
    assert float(damped.metrics[RESIDUAL]) < 1e-10


class Linear(Bowl):
    """An inner loss without curvature."""

    def inner_loss(self, meta, params, batch):
        return (meta["t"] * params["w"]).sum()


class Constant(Bowl):
    """An inner gradient that depends on nothing."""

    def inner_loss(self, meta, params, batch):
        return params["w"].sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "mixed"), [(Linear, 1.0), (Constant, 0.0)])
def test_without_curvature_damping_is_all(kind, mixed, name, estimator):
    v = torch.linspace(1, 2, SIZE, **DOUBLE)
    found = estimate(estimator(name, 100, damping=2.0), kind(None, v), bowl_meta(), once())
    torch.testing.assert_close(found.grad["t"], -mixed * v / 2, rtol=1e-9, atol=1e-10)
    assert float(found.metrics[RESIDUAL]) < 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("steps", "scored"), [(0, (0,)), (3, ()), (3, (2,)), (3, (0, 3)), (2, (5,))])
def test_only_a_score_at_the_end_is_allowed(steps, scored, name, estimator):
    batch = once().inner[0]
    segment = Segment([batch] * steps, dict.fromkeys(scored, batch))
    problem = Bowl(rotated(ILL)[0], torch.ones(SIZE, **DOUBLE))
    with pytest.raises(UserError, match=rf"{name}: got outer batches at steps .* of {steps}; .*unrolled"):
        estimate(estimator(name, 3), problem, bowl_meta(), segment)


@pytest.mark.parametrize("name", NAMES)
def test_constant_gradients_are_refused(name, estimator):
    problem = Bowl(rotated(ILL)[0], torch.ones(SIZE, **DOUBLE))
    problem.second_derivatives = False
    with pytest.raises(UserError, match=f"{name}: the problem's gradients are constants .*unrolled"):
        estimate(estimator(name, 3), problem, bowl_meta(), once())


class Fused(Bowl):
    """Raises where it is differentiated twice, as fused operations do."""

    def inner_loss(self, meta, params, batch):
        points = torch.stack([params["w"], meta["t"]])
        return torch.nn.functional.pdist(points).sum()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_second_derivative_is_explained(name, estimator):
    problem = Fused(None, torch.ones(SIZE, **DOUBLE))
    with pytest.raises(UserError, match=f"{name}: .*second derivative.*finite_difference"):
        estimate(estimator(name, 3), problem, bowl_meta(), once())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Once(Bowl):
    """A function whose second derivative torch would drop in silence."""

    def inner_loss(self, meta, params, batch):
        return super().inner_loss(meta, params, batch) + Cube.apply(params["w"]).sum()


@pytest.mark.parametrize("name", NAMES)
def test_a_second_derivative_that_would_be_dropped_is_refused(name, estimator):
    problem = Once(rotated(ILL)[0], torch.ones(SIZE, **DOUBLE))
    with pytest.raises(UserError, match="Cube, whose backward is marked once_differentiable"):
        estimate(estimator(name, 3), problem, bowl_meta(), once())
