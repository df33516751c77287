# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Persistent evolution strategies: unbiased over a run in windows, where a cut carry is not."""

import pytest
import torch

from metalearn.hypergradient import particles
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import EvolutionOptions, PesOptions
from metalearn.hypergradient.evolution import Evolution
from metalearn.hypergradient.particles import Pair, Particles, from_state, to_state
from metalearn.hypergradient.pes import Pes
from metalearn.inner_optimizers import sgd, sgd_slots
from metalearn.problem import Inner, Problem
from metalearn.rng import generator
from metalearn.task import Batch
from metalearn.tree import add, scale, zeros_like

DOUBLE = {"dtype": torch.float64}
HORIZON, WINDOW = 12, 3
REPETITIONS, PAIRS = 100, 4
BOUND = 4.0  # standard errors: a right mean of two entries passes but once in 8000 seeds


class Valley(Problem):
    """The short-horizon bias of Wu et al. 2018: momentum on curvatures 1 and 0.03; meta: log rate, a pull.

    Most of what the rate does to a run shows long after the steps that it changed: in windows of 3 steps a
    cut carry sees a quarter of it, and a tenth of what the constant pull does.
    """

    shared_loss = True
    curvature = torch.tensor([1.0, 0.03], **DOUBLE)

    def init(self, meta, rng):
        params = {"w": torch.tensor([1.0, 8.0], **DOUBLE)}
        return Inner(params, sgd_slots(params))

    def inner_loss(self, meta, params, batch):
        return 0.5 * (self.curvature * (params["w"] - batch.x).square()).sum()

    def update(self, meta, inner, grads):
        grads = {"w": grads["w"] - 0.3 * meta["pull"]}
        return sgd(inner.params, inner.slots, grads, meta["rate"].exp(), 0.9, 0.0)

    def outer_loss(self, meta, params, batch):
        return self.inner_loss(meta, params, batch)


META = {"rate": torch.tensor(-2.0, **DOUBLE), "pull": torch.tensor(0.3, **DOUBLE)}


def whole_run():
    noise = 0.1 * torch.randn(HORIZON + 1, 2, generator=generator("valley"), **DOUBLE)
    batches = [Batch(x, x, ("valley", step)) for step, x in enumerate(noise)]
    return Segment(batches[:HORIZON], dict(enumerate(batches)))


def pes(pairs=PAIRS, deviation=0.01):
    return Pes(PesOptions("pes", pairs, deviation))


def through(way, problem, windows, rng, between=lambda carry: carry):
    """The sum of the estimates over consecutive windows at fixed meta."""
    carry, total = way.init(problem, META, generator("start")), zeros_like(META)
    for window in windows:
        found = way.estimate(problem, META, carry, window, rng)
        carry, total = between(found.carry), add(total, found.grad)
    return total


def repeated(way, windows, between=lambda carry: carry, repetitions=REPETITIONS):
    """The mean [meta] of independent repetitions and its standard error."""
    found = []
    for repetition in range(repetitions):
        total = through(way, Valley(), windows, generator("noise", repetition), between)
        found.append(torch.stack(list(total.values())))
    drawn = torch.stack(found)
    return drawn.mean(0), drawn.std(0) / repetitions**0.5


def exact(central_differences, play):
    problem, run = Valley(), whole_run()
    inner = problem.init(META, generator("start"))
    grad = central_differences(lambda moved: play(problem, moved, inner, run), META)
    return torch.stack(list(grad.values()))


@pytest.mark.slow
def test_no_truncation_bias_where_truncation_has_one(estimator, central_differences, play):
    """In windows of 3 of 12 steps, reverse mode is many standard errors off and PES is not."""
    right, windows = exact(central_differences, play), whole_run().split(WINDOW)
    mean, error = repeated(pes(), windows)
    assert ((mean - right).abs() < BOUND * error).all()
    assert (error < 0.15 * right.abs()).all()  # so the agreement means something

    for name, setting in [("unrolled", 0), ("truncated", WINDOW)]:
        cut = through(estimator(name, setting), Valley(), windows, generator())
        assert ((torch.stack(list(cut.values())) - right).abs() > 6 * error).all()
    uncut = through(estimator("unrolled"), Valley(), [whole_run()], generator())
    torch.testing.assert_close(torch.stack(list(uncut.values())), right, rtol=1e-8, atol=0)


def forget(carry):
    return Particles(tuple(pair._replace(perturbation=zeros_like(pair.perturbation)) for pair in carry.pairs))


def test_the_sum_of_perturbations_is_what_removes_the_bias(central_differences, play):
    """Forgetting xi between windows leaves truncated evolution strategies: wrong as reverse mode is."""
    right, windows = exact(central_differences, play), whole_run().split(WINDOW)
    mean, error = repeated(pes(), windows, forget, repetitions=40)
    assert ((mean - right).abs() > 5 * error).all()


def merge(carry):
    return Particles(tuple(Pair(pair.positive, pair.positive, pair.perturbation) for pair in carry.pairs))


def swap(carry):
    return Particles(tuple(Pair(pair.negative, pair.positive, pair.perturbation) for pair in carry.pairs))


@pytest.mark.parametrize("fault", [merge, swap])
def test_agreement_sees_particles_that_lost_their_history(fault, central_differences, play):
    right = exact(central_differences, play)
    mean, error = repeated(pes(), whole_run().split(WINDOW), fault, repetitions=20)
    assert ((mean - right).abs() > BOUND * error).any()


def test_agreement_sees_a_negative_particle_that_is_positive(monkeypatch, central_differences, play):
    monkeypatch.setattr("metalearn.hypergradient.pes.add", lambda a, b, s=1.0: add(a, b, abs(s)))
    right = exact(central_differences, play)
    mean, error = repeated(pes(), whole_run().split(WINDOW), repetitions=20)
    assert ((mean - right).abs() > BOUND * error).any()


def test_the_first_window_is_plain_evolution():
    """Nothing has been perturbed before, so both say the same from the same draws."""
    problem, window = Valley(), whole_run().split(WINDOW)[0]
    inner = problem.init(META, generator())
    plain = Evolution(EvolutionOptions("evolution", 3, 0.1))
    expected = plain.estimate(problem, META, inner, window, generator("noise"))
    for carry in (inner, pes(3, 0.1).init(problem, META, generator())):
        found = pes(3, 0.1).estimate(problem, META, carry, window, generator("noise"))
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=0)
        torch.testing.assert_close(found.metrics, expected.metrics, rtol=0, atol=0)


def test_particles_live_under_their_own_perturbations(play):
    """Each run again from its start, by plain steps, under the metas that the perturbations make."""
    problem, windows, way = Valley(), whole_run().split(4), pes(2, 0.3)
    carry, rng = way.init(problem, META, generator()), generator("noise")
    seen = [[zeros_like(META)] for _ in carry.pairs]
    for window in windows:
        found = way.estimate(problem, META, carry, window, rng)
        carry = found.carry
        for pair, sums in zip(carry.pairs, seen, strict=True):
            sums.append(pair.perturbation)
    scores, total = [], zeros_like(META)
    for pair, sums in zip(carry.pairs, seen, strict=True):
        both = []
        for side, end in ((1.0, pair.positive), (-1.0, pair.negative)):
            inner = problem.init(META, generator())
            for window, before, after in zip(windows, sums, sums[1:], strict=False):
                meta = add(META, add(after, before, -1.0), side)
                score = play(problem, meta, inner, window)
                _, inner = particles.play(problem, meta, inner, window)
            torch.testing.assert_close(inner, end)
            both.append(score)
        scores += both
        total = add(total, scale(pair.perturbation, (both[0] - both[1]) / (2 * 0.3**2)), 1 / 2)
    torch.testing.assert_close(found.loss, torch.stack(scores).mean())
    torch.testing.assert_close(found.grad, total)


def test_a_window_that_is_not_scored_moves_the_particles():
    """A run scored at its end alone: three silent windows, then one that owes all to what went before."""
    problem, way, run = Valley(), pes(3), whole_run()
    windows = Segment(run.inner, {HORIZON: run.outer[HORIZON]}).split(WINDOW)
    carry, rng = way.init(problem, META, generator()), generator("noise")
    for window in windows[:-1]:
        found = way.estimate(problem, META, carry, window, rng)
        assert all((leaf == 0).all() for leaf in found.grad.values())
        assert found.loss == 0
        assert found.metrics["hypergradient/spread"] == 0
        assert not torch.equal(found.carry.pairs[0].positive.params["w"], carry.pairs[0].positive.params["w"])
        carry = found.carry
    assert way.estimate(problem, META, carry, windows[-1], rng).grad["rate"] != 0


@pytest.mark.slow
def test_scored_at_the_end_alone_it_is_unbiased_too(central_differences, play):
    run = whole_run()
    run = Segment(run.inner, {HORIZON: run.outer[HORIZON]})
    problem = Valley()
    inner = problem.init(META, generator())
    expected = central_differences(lambda moved: play(problem, moved, inner, run), META)
    mean, error = repeated(pes(), run.split(WINDOW))
    assert ((mean - torch.stack(list(expected.values()))).abs() < BOUND * error).all()


@pytest.mark.parametrize("scored", [(-1,), (4,)])
def test_outer_batches_outside_the_segment_are_refused(scored):
    window = whole_run().split(WINDOW)[0]
    with pytest.raises(ValueError, match="allowed: 0 to 3"):
        pes().estimate(
            Valley(), META, Valley().init(META, generator()),
            Segment(window.inner, dict.fromkeys(scored, window.inner[0])), generator(),
        )  # fmt: skip


def test_a_carry_survives_plain_containers():
    """What comes back from a checkpoint goes on bit for bit, through the device's `put`."""
    problem, way, windows = Valley(), pes(2), whole_run().split(WINDOW)
    found = way.estimate(problem, META, way.init(problem, META, generator()), windows[0], generator("a"))
    for carry in (found.carry, found.carry.pairs[1].negative):
        back = from_state(to_state(carry), torch.clone)
        assert type(back) is type(carry)
        expected = way.estimate(problem, META, carry, windows[1], generator("b"))
        again = way.estimate(problem, META, back, windows[1], generator("b"))
        torch.testing.assert_close(again, expected, rtol=0, atol=0)


def test_every_tensor_of_a_carry_is_put():
    way, put = pes(2), []
    carry = way.init(Valley(), META, generator())
    back = from_state(to_state(carry), lambda tensor: put.append(tensor.clone()) or put[-1])
    pair = back.pairs[1]
    trees = [pair.perturbation, *pair.positive, *pair.negative]
    assert all(any(leaf is tensor for tensor in put) for tree in trees for leaf in tree.values())
    assert len(put) == 2 * (2 + 2 + 2)


def test_results_are_detached_and_inputs_untouched():
    meta = {key: leaf.clone().requires_grad_() for key, leaf in META.items()}
    problem, way, window = Valley(), pes(2), whole_run().split(WINDOW)[0]
    carry = way.init(problem, meta, generator())
    found = way.estimate(problem, meta, carry, window, generator("noise"))
    again = way.estimate(problem, meta, carry, window, generator("noise"))
    torch.testing.assert_close(found, again, rtol=0, atol=0)
    pair = found.carry.pairs[0]
    trees = [found.grad, pair.perturbation, *pair.positive, *pair.negative]
    assert not any(leaf.requires_grad for tree in trees for leaf in tree.values())
    assert not found.loss.requires_grad
    assert all(leaf.grad is None for leaf in meta.values())
