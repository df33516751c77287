"""The linear solvers of implicit hypergradients by themselves."""

import itertools

import pytest
import torch

from metalearn.hypergradient.conjugate_gradient import solve
from metalearn.hypergradient.neumann import series
from metalearn.rng import generator

DOUBLE = {"dtype": torch.float64}
SIZE = 6
ILL = torch.logspace(-1, 1, SIZE, **DOUBLE)  # condition number 100, all eigenvalues distinct


def rotated(eigenvalues):
    """A symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    size = len(eigenvalues)
    vectors = torch.linalg.qr(torch.randn(size, size, generator=generator("rotation"), **DOUBLE))[0]
    return vectors @ torch.diag(eigenvalues) @ vectors.T, vectors


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


def test_neumanns_error_falls_at_the_rate_of_the_smallest_eigenvalue():
    matrix, vectors = rotated(ILL)
    v = vectors.sum(1)
    exact = torch.linalg.solve(matrix, v)
    errors = [
        float((series(lambda u: {"w": matrix @ u["w"]}, {"w": v}, terms, 0.15)["w"] - exact).norm())
        for terms in (200, 201)
    ]
    assert errors[1] / errors[0] == pytest.approx(1 - 0.15 * float(ILL[0]), rel=1e-6)


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


def test_solved_systems_stay_put():
    matrix, vectors = rotated(ILL)
    for v in (vectors[:, 2], 1e-170 * vectors[:, 2]):  # solved in one step; squares underflow
        found = solve(lambda u: {"w": matrix @ u["w"]}, {"w": v}, 30)
        assert found.q["w"].isfinite().all()
        assert not found.negative
    long = solve(lambda u: {"w": matrix @ u["w"]}, {"w": vectors.sum(1)}, 200).q["w"]
    torch.testing.assert_close(long, vectors @ (1 / ILL), rtol=1e-12, atol=1e-12)
