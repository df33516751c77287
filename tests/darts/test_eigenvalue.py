"""Dominant eigenvalues against dense ones."""

import pytest
import torch

from metalearn.darts.eigenvalue import dominant_eigenvalue, lanczos, power
from metalearn.rng import generator

NEGATIVE = [-5.0, -1.0, 0.0, 0.5, 1.0, 3.0]  # the largest magnitude is below 0
POSITIVE = [-1.0, 0.0, 0.0, 0.5, 1.0, 3.0]


def matrix(eigenvalues):
    """A symmetric one, in a random basis."""
    size = len(eigenvalues)
    noise = torch.randn(size, size, generator=generator("basis"), dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


@pytest.fixture
def start():
    return torch.randn(6, generator=generator("start"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "eigenvalues", "expected"),
    [
        (lanczos, POSITIVE, 3.0),
        (lanczos, NEGATIVE, 3.0),
        (lanczos, [-3.0, -2.0, -1.0, -0.5, -0.4, -0.1], -0.1),
        (power, POSITIVE, 3.0),
        (power, NEGATIVE, -5.0),
    ],
)
def test_known_eigenvalues(method, eigenvalues, expected, start):
    dense = matrix(eigenvalues)
    assert float(method(lambda v: dense @ v, start, 6 if method is lanczos else 60)) == pytest.approx(
        expected
    )


def test_lanczos_of_few_products_is_a_lower_bound_that_grows(start):
    dense = matrix(POSITIVE)
    found = [float(lanczos(lambda v: dense @ v, start, number)) for number in range(1, 7)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(float(start @ dense @ start / (start @ start)))
    assert found[2] < 3.0 - 1e-6
    assert found[5] == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_lanczos_ends_when_its_space_is_exhausted(start, scale):
    """A multiple of the identity has one direction; what rounding leaves of others must add no eigenvalue."""
    calls = []

    def multiply(vector):
        calls.append(vector)
        return -scale * vector

    assert float(lanczos(multiply, start, 6)) == pytest.approx(-scale)
    assert len(calls) == 1


def test_power_of_zeros_is_zero(start):
    assert float(power(torch.zeros_like, start, 3)) == 0.0


def test_trees_are_taken_as_one_vector():
    """A product that mixes the leaves, in single precision."""
    dense = matrix(NEGATIVE)

    def product(tree):
        assert {leaf.dtype for leaf in tree.values()} == {torch.float32}
        image = dense.float() @ torch.cat([tree["a"].flatten(), tree["b"]])
        return {"a": image[:4].reshape(2, 2), "b": image[4:]}

    start = {"a": torch.randn(2, 2, generator=generator(0)), "b": torch.randn(2, generator=generator(1))}
    assert float(dominant_eigenvalue("lanczos", product, start, 6)) == pytest.approx(3.0, rel=1e-5)
    assert float(dominant_eigenvalue("power", product, start, 60)) == pytest.approx(-5.0, rel=1e-5)
