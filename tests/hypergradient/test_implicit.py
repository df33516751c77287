# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Implicit hypergradients against closed forms, long unrolls and each other."""

import itertools
import math

import pytest
import torch
from torch.autograd.function import once_differentiable

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.conjugate_gradient import solve
from metalearn.hypergradient.neumann import series
from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
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

    What conjugate gradients minimise, and what falls for any v, is the error in A's norm (next test).
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


def test_conjugate_gradients_error_falls_in_the_matrix_norm():
    matrix, _ = rotated(ILL)
    for draw in range(5):
        v = torch.randn(SIZE, generator=generator("v", draw), **DOUBLE)
        exact = torch.linalg.solve(matrix, v)
        errors = []
        for steps in range(SIZE + 1):
            away = solve(lambda u: {"w": matrix @ u["w"]}, {"w": v}, steps).q["w"] - exact
            errors.append(float(away @ matrix @ away))
        assert all(after < before for before, after in itertools.pairwise(errors))
        assert errors[-1] < 1e-16 * errors[0]


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


def test_neumanns_error_falls_at_the_rate_of_the_smallest_eigenvalue():
    matrix, vectors = rotated(ILL)
    v = vectors.sum(1)
    exact = torch.linalg.solve(matrix, v)
    errors = [
        float((series(lambda u: {"w": matrix @ u["w"]}, {"w": v}, terms, 0.15)["w"] - exact).norm())
        for terms in (200, 201)
    ]
    assert errors[1] / errors[0] == pytest.approx(1 - 0.15 * float(ILL[0]), rel=1e-6)


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


def test_zero_right_hand_side_and_solved_systems_stay_put(estimator):
    matrix, vectors = rotated(ILL)
    for name in NAMES:
        found = estimate(estimator(name, 5), Bowl(matrix, torch.zeros(SIZE, **DOUBLE)), bowl_meta(), once())
        assert (found.grad["t"] == 0).all()
        assert all(float(value) == 0 for value in found.metrics.values())
    for v in (vectors[:, 2], 1e-170 * vectors[:, 2]):  # solved in one step; squares underflow
        found = solve(lambda u: {"w": matrix @ u["w"]}, {"w": v}, 30)
        assert found.q["w"].isfinite().all()
        assert not found.negative
    long = solve(lambda u: {"w": matrix @ u["w"]}, {"w": vectors.sum(1)}, 200).q["w"]
    torch.testing.assert_close(long, vectors @ (1 / ILL), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_system_is_solved_where_it_has_a_solution(dtype):
    """Rounding in directions without curvature is not blown up by steps after the solution.

    Half of 40 directions have none, the others a condition number of 1000; 160 steps.
    """
    eigenvalues = torch.cat([torch.zeros(20, **DOUBLE), torch.logspace(0, 3, 20, **DOUBLE)])
    matrix, vectors = rotated(eigenvalues)
    v = vectors[:, 20:].sum(1)
    found = solve(lambda u: {"w": matrix.to(dtype) @ u["w"]}, {"w": v.to(dtype)}, 160)
    expected = vectors[:, 20:] @ (1 / eigenvalues[20:])
    assert (found.q["w"].double() - expected).norm() < 0.05 * expected.norm()
    assert not found.negative


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


def test_rounding_in_a_negative_direction_is_not_taken_for_curvature():
    """v is an eigenvector: solved in one step, after which the solver rests."""
    matrix, vectors = rotated(torch.tensor([-2.0, 0.5, 1.0, 2.0, 3.0, 4.0], **DOUBLE))
    for place in range(1, SIZE):
        found = solve(lambda u: {"w": matrix @ u["w"]}, {"w": vectors[:, place]}, 60)
        assert not found.negative
        torch.testing.assert_close(matrix @ found.q["w"], vectors[:, place], rtol=1e-12, atol=1e-12)


def test_solvers_run_under_vmap():
    matrices = torch.stack([rotated(ILL * factor)[0] for factor in (1.0, 2.0, -1.0)])
    v = torch.randn(3, SIZE, generator=generator("v"), **DOUBLE)

    def one(matrix, v):
        def product(u):
            return {"w": matrix @ u["w"]}

        solution = solve(product, {"w": v}, SIZE)
        return solution.q["w"], solution.negative, series(product, {"w": v}, 5, 0.1)["w"]

    together = torch.func.vmap(one)(matrices, v)
    alone = [torch.stack(parts) for parts in zip(*map(one, matrices, v), strict=True)]
    torch.testing.assert_close(together, tuple(alone), rtol=1e-7, atol=1e-9)
    assert together[1].tolist() == [False, False, True]


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
