"""The density of the pen's next move: against scipy, numerically, at its limits; draws from it."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from metalearn.rng import generator
from tasks.mixture import draw, log_density, mixture, outputs

COMPONENTS = 3


def random_output(*shape, components=COMPONENTS, scale=0.7, key="output"):
    wide = (*shape, outputs(components))
    return scale * torch.randn(wide, generator=generator(key), dtype=torch.float64)


def reference(output, point):
    """Minus the loss of one point by scipy, from the plain formulas (Graves 2013, eq. 16-26)."""
    k = (len(output) - 1) // 6
    weight, mean, deviation, turn, lift = np.split(output, [k, 3 * k, 5 * k, 6 * k])
    weight, mean = np.exp(weight) / np.exp(weight).sum(), mean.reshape(k, 2)
    deviation, rho = np.exp(deviation).reshape(k, 2), np.tanh(turn)
    total = 0.0
    for part in range(k):
        across = rho[part] * deviation[part].prod()
        covariance = np.diag(deviation[part] ** 2) + across * (1 - np.eye(2))
        total += weight[part] * multivariate_normal(mean[part], covariance).pdf(point[:2])
    lifted = 1 / (1 + np.exp(-lift[0]))
    return np.log(total) + np.log(lifted if point[2] else 1 - lifted)


def some_points(count):
    moves = torch.randn(count, 2, generator=generator("points"), dtype=torch.float64)
    return torch.cat([moves, (torch.arange(count) % 2)[:, None].double()], dim=1)


def test_density_is_that_of_scipy():
    output, points = random_output(20), some_points(20)
    expected = [reference(row, point) for row, point in zip(output.numpy(), points.numpy(), strict=True)]
    found = log_density(mixture(output), points)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_gradient_is_that_of_the_reference():
    """Central differences of scipy's density, in every output."""
    output, point = random_output(1)[0], some_points(2)[1]
    leaf = output.clone().requires_grad_()
    (found,) = torch.autograd.grad(log_density(mixture(leaf), point), leaf)
    step = 1e-6 * torch.eye(len(output), dtype=torch.float64)
    expected = [
        (reference((output + one).numpy(), point.numpy()) - reference((output - one).numpy(), point.numpy()))
        / 2e-6
        for one in step
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_first_and_second_derivatives():
    output, points = random_output(2, components=2).requires_grad_(), some_points(2)

    def density(leaf):
        return log_density(mixture(leaf), points)

    assert torch.autograd.gradcheck(density, output, fast_mode=True)
    assert torch.autograd.gradgradcheck(density, output, fast_mode=True)


def test_density_integrates_to_one():
    """Over the plane and both states of the pen; a fine grid sums a smooth density to rounding."""
    output = random_output(1, scale=0.5)
    axis = torch.linspace(-20, 20, 401, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    total = 0.0
    for lifted in (0.0, 1.0):
        points = torch.stack([x, y, torch.full_like(x, lifted)], dim=-1).flatten(0, 1)
        total += log_density(mixture(output), points).exp().sum() * 0.1**2
    assert float(total) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("size", [1e1, 1e3, 1e6])
def test_wild_outputs_and_points_stay_finite_in_float32(size):
    output = random_output(200, scale=size).float().requires_grad_()
    points = torch.cat([30 * some_points(200)[:, :2], some_points(200)[:, 2:]], dim=1).float()
    density = log_density(mixture(output), points)
    (grad,) = torch.autograd.grad(density.sum(), output)
    assert density.isfinite().all()
    assert grad.isfinite().all()


def test_float32_holds_near_correlations_of_one():
    """The naive quotient by 1 - rho^2 is off by more than a nat here."""
    output = torch.zeros(7, dtype=torch.float64)
    output[5] = 7.0  # rho = 0.9999983
    point = torch.tensor([1.3, 1.2999, 0.0], dtype=torch.float64)
    exact = log_density(mixture(output), point)
    torch.testing.assert_close(
        log_density(mixture(output.float()), point.float()).double(), exact, rtol=1e-3, atol=0
    )


def said_once(components=COMPONENTS, count=40_000):
    return mixture(random_output(1, components=components, key="said").expand(count, -1))


def test_draws_have_the_moments_of_the_mixture():
    said = said_once()
    drawn = draw(said, generator("draws"), 1.0)
    weight, rho = said.log_weight[0].exp(), torch.tanh(said.turn[0])
    mean = (weight[:, None] * said.mean[0]).sum(0)
    spread = said.mean[0] - mean
    deviation = said.log_deviation[0].exp()
    variance = (weight[:, None] * (deviation**2 + spread**2)).sum(0)
    covariance = (weight * (rho * deviation.prod(-1) + spread.prod(-1))).sum()
    found = torch.cov(drawn[:, :2].T)
    torch.testing.assert_close(drawn[:, :2].mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found.diagonal(), variance, rtol=0.04, atol=0)
    assert float(found[0, 1]) == pytest.approx(float(covariance), abs=0.03)
    assert float(drawn[:, 2].mean()) == pytest.approx(float(torch.sigmoid(said.lift[0])), abs=0.01)


def test_temperature_is_graves_bias():
    """At a half, b = 1: deviations by 1/e, weights squared, one component's spread to be seen."""
    said = said_once(components=1)
    found = draw(said, generator("draws"), 0.5)[:, :2].std(0)
    torch.testing.assert_close(found, (said.log_deviation[0, 0] - 1.0).exp(), rtol=0.03, atol=0)


def test_at_temperature_zero_it_is_the_likeliest_components_mean():
    said = mixture(random_output(50, key="said"))
    drawn = draw(said, generator("any"), 0.0)
    best = said.log_weight.argmax(-1)
    assert torch.equal(drawn[:, :2], said.mean[torch.arange(50), best])
    assert torch.equal(drawn[:, 2] > 0, torch.sigmoid(said.lift) > 0.5)
    torch.testing.assert_close(draw(said, generator("any"), 1e-2), drawn, rtol=0, atol=1e-6)


def test_draws_are_a_function_of_their_generator():
    said = mixture(random_output(5))
    assert torch.equal(draw(said, generator("a"), 1.0), draw(said, generator("a"), 1.0))
    assert not torch.equal(draw(said, generator("a"), 1.0), draw(said, generator("b"), 1.0))


def test_uniform_weights_at_start_have_a_known_density():
    """All outputs 0: a standard normal and an even chance."""
    output, point = torch.zeros(outputs(20)), torch.tensor([0.0, 0.0, 1.0])
    assert float(log_density(mixture(output), point)) == pytest.approx(-math.log(2 * math.pi) - math.log(2))
