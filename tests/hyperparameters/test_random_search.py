"""The control: right draws, the best of them, resumable."""

import io
import math

import pytest
import torch

from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.hyperparameters.method import Hyperparameters
from metalearn.hyperparameters.random_search import RandomSearch
from metalearn.registry import UserError


def _context(kit):
    return kit.context()._replace(hypergradient=None)


def _saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _loss(method, meta):
    """Mean validation loss over the runs of a step, by plain calls."""
    trained = [method.runs.train(meta, "train", run).params for run in range(2)]
    return sum(method.runs.score(params, "search_valid")["loss"].item() for params in trained) / 2


def test_the_best_of_all_draws_is_kept(kit):
    method = RandomSearch(kit.searched(), _context(kit))
    losses = [method.step(index)["search_valid/loss"].item() for index in range(6)]
    expected = [_loss(method, method.draw(index)) for index in range(6)]
    assert losses == pytest.approx(expected, rel=1e-6)
    best = expected.index(min(expected))
    assert 0 < best < 5  # else keeping the first or the last would do as well
    assert all(torch.equal(method.meta[key], leaf) for key, leaf in method.draw(best).items())
    assert method.best.item() == pytest.approx(min(expected))


@pytest.mark.parametrize("stop", [0, 3])
def test_resume_is_bit_exact(kit, stop):
    whole, first, second = (RandomSearch(kit.searched(), _context(kit)) for _ in range(3))
    rows = [whole.step(index) for index in range(5)]
    for index in range(stop):
        first.step(index)
    second.load_state_dict(_saved(first.state_dict()))
    assert [second.step(index) for index in range(stop, 5)] == rows[stop:]
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    assert second.evaluate("valid") == whole.evaluate("valid")


def test_an_estimator_that_would_not_be_used_is_refused(kit):
    context = kit.context()._replace(hypergradient=Unrolled(UnrolledOptions("unrolled", False)))
    with pytest.raises(UserError, match="random_search uses no hypergradient; set hypergradient=none"):
        RandomSearch(kit.searched(), context)


def test_draws_are_log_uniform_in_their_ranges(kit):
    method = RandomSearch(kit.searched(), _context(kit))
    draws = [method.draw(index) for index in range(400)]
    rates = torch.stack([draw["log_rate"] for draw in draws])
    penalties = torch.stack([draw["log_penalty/network"] for draw in draws])
    for logs, low, high in ((rates, 0.001, 1.0), (penalties, 1e-6, 0.1)):
        low, high = math.log(low), math.log(high)
        assert low < logs.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < logs.max() < high
        assert logs.mean().item() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert not torch.equal(rates[:, 0, 0], rates[:, 0, 1])


def test_judged_on_the_runs_that_learned_ones_are_judged_on(kit):
    """Same starting values, same fresh runs: the gains of both methods can be put side by side."""
    drawn = RandomSearch(kit.searched(learning_rates="global", penalties="none"), _context(kit))
    learned = Hyperparameters(kit.learned(), kit.context())
    drawn.step(0)
    with torch.no_grad():
        learned.meta["log_rate"].copy_(drawn.meta["log_rate"])
    assert drawn.evaluate("test") == learned.evaluate("test")


def test_ranges_are_checked(kit):
    with pytest.raises(UserError, match=r"method.penalty_range: got \[0.1, 0.001\]"):
        RandomSearch(kit.searched(penalty_range=[0.1, 0.001]), _context(kit))
