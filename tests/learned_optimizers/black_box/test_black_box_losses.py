"""Losses of trajectories against closed forms, integration and hand."""

import pytest
import torch

from metalearn.learned_optimizers.black_box.losses import expected_improvement, trajectory_loss

VALUES = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, -3.0], [0.7, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "deviation", "best"), [(0.0, 1.0, 0.0), (0.4, 0.3, 0.1), (-1.0, 2.0, 0.5), (2.0, 0.4, 0.0)]
)
def test_expected_improvement_is_the_integral(mean, deviation, best):
    """E max(best - y, 0) on a fine grid of y."""
    y = torch.linspace(mean - 12 * deviation, best, 400_001, dtype=torch.float64)
    density = torch.distributions.Normal(mean, deviation).log_prob(y).exp()
    expected = torch.trapezoid((best - y) * density, y) if best > y[0] else torch.zeros(())
    found = expected_improvement(
        *(torch.tensor(part, dtype=torch.float64) for part in (mean, deviation, best))
    )
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)


def test_expected_improvement_where_it_is_known():
    """At the mean it is s / sqrt(2 pi); with no spread left it is max(best - mean, 0)."""
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(expected_improvement(one, 2 * one, one), 2 * one * 0.3989422804014327)
    torch.testing.assert_close(expected_improvement(0 * one, 1e-9 * one, 3 * one), 3 * one)
    assert expected_improvement(3 * one, 1e-9 * one, 0 * one) == 0


HAND = [  # loss, by hand from VALUES; sums over time are divided by the four queries
    ("sum", (1 + 2 + 0.5 + 0.7 + 0 - 1 - 3 - 2) / 8),
    ("final", (0.7 - 2) / 2),
    ("oi", (-0.5 + (-1 - 2)) / 2 / 4),
]


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(("name", "expected"), HAND)
def test_by_hand(name, expected, detach):
    found = trajectory_loss(name, VALUES, None, detach)
    assert found.item() == pytest.approx(expected)


def test_ei_is_what_is_expected_of_each_query():
    assert trajectory_loss("ei", VALUES, VALUES.abs(), False).item() == pytest.approx(-VALUES.abs().mean())


def test_observed_improvement_is_never_positive_and_telescopes():
    values = torch.randn(30, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = trajectory_loss("oi", values, None, True)
    assert found < 0
    torch.testing.assert_close(found * 30, (values.amin(0) - values[0]).mean())
    assert trajectory_loss("oi", values.cummax(0).values, None, True) == 0


def test_detached_improvements_are_credited_to_their_own_query():
    """Undetached: only the best query and, with the other sign, the first."""
    for detach, expected in ((True, [0, 0, 1, 0]), (False, [-1, 0, 1, 0])):
        values = VALUES[:, :1].clone().requires_grad_()
        (grad,) = torch.autograd.grad(trajectory_loss("oi", values, None, detach), values)
        assert (4 * grad).flatten().tolist() == expected
    for detach, expected in ((True, [0, 1, 1, 0]), (False, [-1, 0, 1, 0])):
        values = VALUES[:, 1:].clone().requires_grad_()
        (grad,) = torch.autograd.grad(trajectory_loss("oi", values, None, detach), values)
        assert (4 * grad).flatten().tolist() == expected
