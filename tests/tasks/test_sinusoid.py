"""Sine waves: their form, ranges, streams and errors."""

import math

import pytest
import torch

from metalearn.registry import UserError
from metalearn.task import Batch

SPLITS = ("train", "valid", "test", "search_train", "search_valid")


def fitted(x, y):
    """Amplitude and phase of each wave by least squares on sin x and cos x, and the error that is left."""
    basis = torch.cat([x.sin(), x.cos()], -1)
    along, across = torch.linalg.lstsq(basis, y).solution.squeeze(-1).unbind(-1)
    fit = along[:, None, None] * x.sin() + across[:, None, None] * x.cos()
    return torch.hypot(along, across), torch.atan2(-across, along), (fit - y).abs().max()


def test_examples_lie_on_waves_of_the_papers_ranges(make):
    x, y, _ = make("sinusoid", "batch=4000").batch("train", 0)
    amplitude, phase, error = fitted(x.double(), y.double())
    assert error < 1e-5
    assert -5 <= x.min() < -4.99
    assert 4.99 < x.max() <= 5
    assert 0.1 <= amplitude.min() + 1e-4 < 0.12
    assert 4.98 < amplitude.max() <= 5 + 1e-4
    assert amplitude.mean() == pytest.approx(2.55, abs=0.1)
    assert -1e-3 <= phase.min() < 0.01
    assert math.pi - 0.01 < phase.max() <= math.pi + 1e-3
    assert phase.mean() == pytest.approx(math.pi / 2, abs=0.07)


def test_loss_is_the_mean_squared_error(make):
    y = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    output = torch.tensor([[[1.0], [0.0]], [[3.0], [1.0]]])
    assert make("sinusoid").loss(output, Batch(y, y, ())) == (0 + 4 + 0 + 9) / 4


def test_no_two_splits_share_a_wave(make):
    task = make("sinusoid")
    drawn = [task.batch(split, index).y for split in SPLITS for index in range(3)]
    drawn += [batch.y for split in ("valid", "test") for batch in task.sweep(split)]
    waves = torch.cat(drawn).flatten(1)
    assert len(torch.unique(waves, dim=0)) == len(waves) == 15 * 25 + 1200


def test_a_sweep_does_not_follow_its_batches(make):
    """Nor does it change its first tasks where it has fewer of them."""
    whole = torch.cat([batch.y for batch in make("sinusoid").sweep("test")])
    fewer = list(make("sinusoid", "evaluated=25", "evaluation_batch=10", "batch=7").sweep("test"))
    assert [len(batch.y) for batch in fewer] == [10, 10, 5]
    assert torch.equal(torch.cat([batch.y for batch in fewer]), whole[:25])


@pytest.mark.parametrize("line", ["amplitude=[5.0,0.1]", "phase=[1.0]", "inputs=[1.0,2.0,3.0]"])
def test_a_range_that_is_none_is_refused(make, line):
    with pytest.raises(UserError, match=rf"task\.{line.split('=')[0]}: got .* lowest and the highest"):
        make("sinusoid", line)
