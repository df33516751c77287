# ruff: noqa: ARG001  (pieces have the signatures of those they replace)
"""Faults that the field's code bases have had, planted in ours: the proofs turn red.

Each check passes as the code is, and fails once one piece of it is replaced.
"""

import itertools

import pytest
import torch
from torch.func import functional_call

from metalearn.hypergradient import conjugate_gradient, finite_difference
from metalearn.rng import generator, seeded
from metalearn.tree import add, scale

DOUBLE = {"dtype": torch.float64}
RED = pytest.raises(AssertionError)


@pytest.fixture
def regressed(regression, central_differences, play, relative_error):
    """(estimator, steps, plant) -> relative error of each leaf of a dropout network's hypergradient.

    `plant` changes the problem after the answer was found; the run's start is the honest one's.
    """

    def errors(way, steps, plant=None):
        problem = regression("dropout", "momentum")
        meta, carry, segment = problem.meta(2), problem.warm(), problem.segment(steps, steps)
        answer = central_differences(lambda moved: play(problem, moved, carry, segment), meta)
        if plant:
            plant(problem)
        found = way.estimate(problem, meta, carry, segment, generator()).grad
        return {key: relative_error({key: found[key]}, {key: answer[key]}) for key in answer}

    return errors


def check_regression(errors):
    """As the grid does."""
    assert max(errors.values()) < 1e-6, errors


# the finite-difference quotient


def _without_parentheses(positive, negative, length, radius):
    """(p - n) / 2 * eps for eps = radius / length: without parentheses around the denominator."""
    return scale(add(positive, negative, -1.0), radius / length / 2)


def _one_sided(positive, negative, length, radius):
    return scale(add(positive, negative, -1.0), length / radius)


@pytest.mark.parametrize("fault", [_without_parentheses, _one_sided])
def test_a_quotient_without_parentheses(fault, regressed, estimator, monkeypatch):
    way = estimator("finite_difference", 3e-4)
    check_regression(regressed(way, 1))
    monkeypatch.setattr(finite_difference, "quotient", fault)
    with RED:
        check_regression(regressed(way, 1))


# conjugate gradients


def check_conjugate_gradients():
    """As tests of the solver do: solved after as many steps as there are distinct eigenvalues."""
    eigenvalues = torch.logspace(-1, 1, 6, **DOUBLE)
    vectors = torch.linalg.qr(torch.randn(6, 6, generator=generator("rotation"), **DOUBLE))[0]
    matrix, v = vectors @ torch.diag(eigenvalues) @ vectors.T, vectors @ eigenvalues
    rests = []
    for iterations in range(1, 7):
        q = conjugate_gradient.solve(lambda u: {"w": matrix @ u["w"]}, {"w": v}, iterations).q["w"]
        rests.append(float((matrix @ q - v).norm() / v.norm()))
    assert all(after < before for before, after in itertools.pairwise([1.0, *rests])), rests
    assert rests[-1] < 1e-10, rests


def _stale(rest, image, distance):
    """The residual is not updated."""
    return rest


def _halfway(rest, image, distance):
    """The residual is moved by something else than q."""
    return add(rest, image, -0.5 * distance)


def _with_itself(square, before, going):
    """beta from the residual before in both places."""
    return conjugate_gradient.quotient(before, before, going)


def _upside_down(square, before, going):
    return conjugate_gradient.quotient(before, square, going & (square > 0))


def _never(square, before, going):
    """Steepest descent."""
    return torch.zeros_like(square)


@pytest.mark.parametrize(
    ("piece", "fault"),
    [("remainder", _stale), ("remainder", _halfway)]
    + [("turn", fault) for fault in (_with_itself, _upside_down, _never)],
)
def test_a_stale_residual(piece, fault, monkeypatch):
    check_conjugate_gradients()
    monkeypatch.setattr(conjugate_gradient, piece, fault)
    with RED:
        check_conjugate_gradients()


@pytest.mark.parametrize("fault", [_stale, _halfway])
def test_a_stale_residual_is_reported(fault, regression, estimator, monkeypatch):
    """The metric is computed from q, not taken from the solver, which believes what it likes."""
    problem = regression("mlp", "sgd", proximal=True)
    meta = problem.meta(2) | {"penalty": torch.ones(2, **DOUBLE)}
    segment, way = problem.segment(1, 1), estimator("conjugate_gradient", 40)

    def residual():
        found = way.estimate(problem, meta, problem.init(meta, generator()), segment, generator())
        return float(found.metrics["hypergradient/residual"])

    assert residual() < 1e-10
    monkeypatch.setattr(conjugate_gradient, "remainder", fault)
    assert residual() > 1e-2


# dropout masks


def _redrawn_in_sides(problem):
    """The gradient for the step sees the right masks, the two sides of the difference each their own."""
    honest, passes = problem.run, itertools.count()

    def run(params, batch):
        turn = next(passes) if batch.key[0] == "in" else 0
        if turn == 0:
            return honest(params, batch)
        with seeded("side", turn):
            return functional_call(problem.module, params, (batch.x,))

    problem.run = run


def test_redrawn_masks_between_the_sides(regressed, estimator):
    way = estimator("finite_difference", 3e-4)
    check_regression(regressed(way, 1))
    with RED:
        check_regression(regressed(way, 1, _redrawn_in_sides))


def _redrawn_again(problem):
    """The masks of a batch's first pass are right, those of later passes are new."""
    honest, seen = problem.run, set()

    def run(params, batch):
        if batch.key not in seen:
            seen.add(batch.key)
            return honest(params, batch)
        with seeded("again", *batch.key):
            return functional_call(problem.module, params, (batch.x,))

    problem.run = run


def test_redrawn_masks_in_the_recomputation(regressed, estimator):
    """Plain unrolling passes each batch once and stays right; running parts again does not."""
    again = estimator("unrolled", recompute=True)
    check_regression(regressed(again, 5))
    check_regression(regressed(estimator("unrolled"), 5, _redrawn_again))
    with RED:
        check_regression(regressed(again, 5, _redrawn_again))
