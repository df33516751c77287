"""Scores of loss curves against answers by hand."""

import math

import pytest
import torch

from metalearn.learned_optimizers.score import half_width, score, smoothed


def _decay(rate, points=101, problems=3):
    """exp(-rate t) on every problem."""
    return torch.exp(-rate * torch.arange(points, dtype=torch.float64)).unsqueeze(1).expand(-1, problems)


def test_smoothing_is_the_mean_of_the_last_points():
    curve = torch.tensor([[8.0], [4.0], [2.0], [math.nan], [6.0]])
    assert smoothed(curve, 2).squeeze(1).tolist() == [8.0, 6.0, 3.0, 5.0, 7.0]  # NaN counts as the first loss


def test_a_curve_beside_itself():
    found = score(_decay(0.03), _decay(0.03), window=1)
    assert found["final_ratio"] == 1
    assert found["final_ratio_low"] == found["final_ratio_high"] == 1
    assert (found["speed_up"], found["steps_to_reach"]) == (1, 100)
    assert (found["reached"], found["rose"]) == (1, 0)


def test_twice_as_fast():
    """exp(-0.02 t) gets to exp(-0.01 100) at step 50."""
    found = score(_decay(0.02000001), _decay(0.01), window=1)
    assert found["steps_to_reach"] == 50
    assert found["speed_up"] == 2
    assert found["final_ratio"].item() == pytest.approx(math.exp(-1), rel=1e-5)


def test_smoothing_delays_both_alike():
    """Exponentials keep their form under a running mean, so that the quotient of steps hardly changes."""
    found = score(_decay(0.02), _decay(0.01), window=10)
    assert found["speed_up"].item() == pytest.approx(2, rel=0.08)


def test_never_is_one_step_more_than_there_are():
    found = score(_decay(0.01), _decay(0.02), window=1)
    assert found["steps_to_reach"] == 101
    assert found["speed_up"].item() == pytest.approx(100 / 101)
    assert found["reached"] == 0


def test_the_interval_is_students_over_problems():
    ours, theirs = _decay(0.01, problems=3) * torch.tensor([1.0, 2.0, 4.0]), _decay(0.01, problems=3)
    found = score(ours, theirs, window=1)
    half = 4.302653 * math.log(2) / math.sqrt(3)  # t of two degrees of freedom at 0.975; deviation log 2
    assert found["final_ratio"].item() == pytest.approx(2)
    assert found["final_ratio_low"].item() == pytest.approx(2 * math.exp(-half), rel=1e-5)
    assert found["final_ratio_high"].item() == pytest.approx(2 * math.exp(half), rel=1e-5)
    assert half_width(torch.ones(1)) == 0


def test_a_last_loss_of_zero_does_not_drown_the_others():
    """One of ten in float32: it counts as 2^-23 of its start, so that the geometric mean is that to 1/10."""
    ours = _decay(0.01, problems=10).float().clone()
    theirs = ours.clone()
    theirs[1:, 0] = 0
    found = score(ours, theirs, window=1)
    assert found["final_ratio"].item() == pytest.approx((math.exp(-1) * 2**23) ** 0.1, rel=1e-4)
    assert score(theirs, theirs, window=1)["final_ratio"] == 1


def test_divergence_shows():
    """One run of two rises, the other leaves the finite at once; both count as they began, or worse."""
    rising = 1 / _decay(0.01, problems=2)
    lost = rising.clone()
    lost[3:, 1] = math.inf
    found = score(lost, _decay(0.01, problems=2), window=1)
    assert found["rose"] == 0.5
    assert found["final_ratio"].item() == pytest.approx(math.exp((2 + 1) / 2))
    assert all(value.isfinite() for value in found.values())
