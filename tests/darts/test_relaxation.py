"""Relaxations against central differences, closed forms and counts."""

import pytest
import torch

from metalearn.darts.config import RelaxationOptions
from metalearn.darts.relaxation import RELAXATIONS
from metalearn.registry import UserError
from metalearn.rng import generator, seeded

KINDS = list(RELAXATIONS)
MANY = 40_000


def relaxation(kind, penalty=0.0, temperature=2.0, final=0.5):
    return RELAXATIONS[kind](RelaxationOptions(kind, temperature, final, False, penalty))


@pytest.fixture
def alpha():
    """Four edges of five operations."""
    return 1.5 * torch.randn(4, 5, generator=generator("alpha"), dtype=torch.float64)


@pytest.fixture
def allowed():
    """All, some, one and none of an edge's operations."""
    rows = [[1, 1, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    return torch.tensor(rows, dtype=torch.bool)


def noisy(kind, alpha, allowed, progress=0.3, **options):
    """The same draw at each call."""
    with seeded("noise"):
        return relaxation(kind, **options).mix(alpha, allowed, progress)


def slope(function, alpha, direction, size=1e-6):
    return (function(alpha + size * direction) - function(alpha - size * direction)) / (2 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_allowed_has_no_weight_and_no_gradient(kind, alpha, allowed):
    alpha.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        for weights in (noisy(kind, alpha, allowed), relaxation(kind).strengths(alpha, allowed)):
            assert not weights[~allowed].any()
            assert weights[:3].any(dim=1).all()
            (grad,) = torch.autograd.grad(weights.square().sum() + weights[:, 1].sum(), alpha)
            assert grad.isfinite().all()
            assert not grad[~allowed].any()


@pytest.mark.parametrize("kind", ["softmax", "gumbel", "concrete", "dirichlet"])
def test_weights_of_an_edge_sum_to_one(kind, alpha, allowed):
    for weights in (noisy(kind, alpha, allowed), relaxation(kind).strengths(alpha, allowed)):
        torch.testing.assert_close(weights.sum(1), torch.tensor([1, 1, 1, 0], dtype=torch.float64))


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["softmax", "concrete", "sigmoid"])
def test_weights_have_the_gradient_of_central_differences(kind, alpha, allowed, progress):
    """Under the same noise."""
    probe = torch.randn(4, 5, generator=generator("probe"), dtype=torch.float64)
    alpha.requires_grad_()
    (grad,) = torch.autograd.grad((noisy(kind, alpha, allowed, progress) * probe).sum(), alpha)
    for index in range(3):
        direction = torch.randn(4, 5, generator=generator("direction", index), dtype=torch.float64)
        expected = slope(
            lambda a: (noisy(kind, a, allowed, progress) * probe).sum(), alpha.detach(), direction
        )
        torch.testing.assert_close((grad * direction).sum(), expected, rtol=1e-7, atol=1e-9)


def test_straight_through_is_hard_forward_and_soft_backward(alpha, allowed):
    """The soft weights are those of concrete under the same noise."""
    probe = torch.randn(4, 5, generator=generator("probe"), dtype=torch.float64)
    alpha.requires_grad_()
    hard = noisy("gumbel", alpha, allowed)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.sum(1), allowed.any(1).double())
    soft = noisy("concrete", alpha, allowed)
    assert torch.equal(hard[:3].argmax(1), soft[:3].argmax(1))
    (found,) = torch.autograd.grad((hard * probe).sum(), alpha)
    (expected,) = torch.autograd.grad((soft * probe).sum(), alpha)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.abs().max() > 0.01


@pytest.mark.parametrize("kind", ["gumbel", "concrete"])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_the_largest_weight_is_drawn_from_the_softmax(kind, alpha, allowed, progress):
    row, mask = alpha[1].expand(MANY, -1), allowed[1].expand(MANY, -1)
    weights = noisy(kind, row, mask, progress)
    counts = torch.nn.functional.one_hot(weights.argmax(1), 5).double().mean(0)
    expected = relaxation(kind).strengths(row[:1], mask[:1])[0]
    sigma = (expected * (1 - expected) / MANY).sqrt()
    assert ((counts - expected).abs() <= 4 * sigma).all()


def test_temperature_falls_linearly(alpha, allowed):
    """Under the same noise, differences of log weights are as the inverse of the temperature."""

    def spread(progress):
        logs = noisy("concrete", alpha, allowed, progress, temperature=10.0, final=0.1).log()
        return logs[0, 0] - logs[0, 1]

    torch.testing.assert_close(spread(0.5), spread(0.0) * 10.0 / 5.05)
    torch.testing.assert_close(spread(1.0), spread(0.0) * 10.0 / 0.1)


def _moments(alpha, allowed):
    """Mean and variance of the Dirichlet of the allowed operations, from its definition."""
    concentration = torch.where(alpha > 0, alpha + 1, alpha.exp())[allowed]
    total = concentration.sum()
    mean = concentration / total
    return mean, mean * (1 - mean) / (total + 1)


def test_dirichlet_has_its_mean_and_variance(alpha, allowed):
    row, mask = alpha[1].expand(MANY, -1), allowed[1].expand(MANY, -1)
    drawn = noisy("dirichlet", row, mask)[:, allowed[1]]
    mean, variance = _moments(alpha[1], allowed[1])
    assert ((drawn.mean(0) - mean).abs() < 4 * (variance / MANY).sqrt()).all()
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.03, atol=0)
    torch.testing.assert_close(relaxation("dirichlet").strengths(row[:1], mask[:1])[0, allowed[1]], mean)


def test_dirichlet_draws_have_the_gradient_of_their_expectation(alpha, allowed):
    """Of E[sum c w^2] = sum c (mean^2 + variance)."""
    probe = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    row = alpha[1].clone().requires_grad_()
    mean, variance = _moments(row, allowed[1])
    (expected,) = torch.autograd.grad((probe * (mean.square() + variance)).sum(), row)
    rows = alpha[1].expand(MANY, -1).clone().requires_grad_()
    drawn = noisy("dirichlet", rows, allowed[1].expand(MANY, -1))[:, allowed[1]]
    (grads,) = torch.autograd.grad((probe * drawn.square()).sum(), rows)
    error = grads.std(0) / MANY**0.5
    assert ((grads.mean(0) - expected).abs() <= 4 * error + 1e-4).all()
    assert (expected.abs()[allowed[1]] > 20 * error[allowed[1]]).all()


def test_dirichlet_stands_very_small_concentrations():
    alpha = torch.full((2, 3), -40.0).requires_grad_()
    weights = noisy("dirichlet", alpha, torch.ones(2, 3, dtype=torch.bool))
    (grad,) = torch.autograd.grad(weights[:, 0].sum(), alpha)
    assert weights.isfinite().all()
    assert grad.isfinite().all()


def test_dirichlets_penalty_is_the_divergence_to_the_flat_one(alpha, allowed):
    leaf = alpha.clone().requires_grad_()
    found = relaxation("dirichlet", 0.3).penalty({"a": leaf, "b": 0 * leaf}, {"a": allowed, "b": allowed})
    assert found is not None
    terms = []
    for row, mask in zip(leaf[:3], allowed[:3], strict=True):
        if mask.sum() > 1:
            concentration = torch.nn.functional.elu(row[mask]) + 1
            ours = torch.distributions.Dirichlet(concentration)
            flat = torch.distributions.Dirichlet(torch.ones_like(concentration))
            terms.append(torch.distributions.kl_divergence(ours, flat))
    expected = 0.3 * torch.stack(terms).sum()
    torch.testing.assert_close(found, expected)  # one allowed operation, or none, has no divergence
    grads = [torch.autograd.grad(value, leaf)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0.01


def test_zero_one_loss_is_the_negative_mean_square(alpha, allowed):
    """Over all kinds of cell together: 9 entries of a, 9 of b."""
    rule = relaxation("sigmoid", 10.0)
    masks = {"a": allowed, "b": allowed}
    flat = rule.penalty({"a": 0 * alpha, "b": 0 * alpha}, masks)
    assert flat is not None
    assert flat == 0
    sharp = rule.penalty({"a": 0 * alpha - 60, "b": 0 * alpha}, masks)
    assert sharp is not None
    torch.testing.assert_close(sharp, torch.tensor(-10 * 0.25 / 2, dtype=torch.float64))
    alpha.requires_grad_()
    (grad,) = torch.autograd.grad(rule.penalty({"a": alpha, "b": 0 * alpha}, masks), alpha)  # type: ignore[arg-type]
    direction = torch.randn(4, 5, generator=generator("direction"), dtype=torch.float64)
    expected = slope(lambda a: rule.penalty({"a": a, "b": 0 * a}, masks), alpha.detach(), direction)
    torch.testing.assert_close((grad * direction).sum(), expected)


@pytest.mark.parametrize("kind", ["softmax", "gumbel", "concrete"])
def test_a_penalty_that_does_not_exist_is_refused(kind):
    with pytest.raises(UserError, match=f"got 0.1, {kind} has none"):
        relaxation(kind, 0.1)
    assert relaxation(kind).penalty({}, {}) is None
