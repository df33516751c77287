"""Particles side by side against particles one by one, in float64."""

import pytest
import torch

from metalearn.hypergradient.particles import play
from metalearn.hypergradient.side_by_side import perturbations
from metalearn.learned_optimizers.run import Run
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.tree import add, norm, scale, zeros_like

FEW = {"pairs": 2, "deviation": 0.05}
SMALL = {"hidden": 3, "layers": 1, "problems": 2, "count_last": True}


def _method(kit, estimator, particles, task="Quadratics", settings=FEW, **changes):
    method = kit.learner(
        getattr(kit, task)(), estimator, settings, particles=particles, **{**SMALL, **changes}
    )
    fresh = method.rule.init(generator("weights"))
    method.meta = {key: leaf.double().requires_grad_() for key, leaf in fresh.items()}
    return method


def _estimates(method, steps=2):
    """Of the first unrolls, meta as it is."""
    found, carry = [], method.estimator.init(method.run(0, 0)[0], method.meta, generator(0))
    for index in range(steps):
        run, part = method.run(index, 0)
        segment = method.segment(run, part)
        found.append(method.estimator.estimate(run, method.meta, carry, segment, generator("noise", index)))
        carry = found[-1].carry
    return found


@pytest.mark.parametrize("task", ["Blobs", pytest.param("Quadratics", marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", ["evolution", "pes"])
def test_one_perturbation_for_all_is_that_of_the_loop(kit, float64, estimator, task):  # noqa: ARG001
    """Two unrolls, the second from where the particles of the first ended."""
    turns, together = (
        _estimates(_method(kit, estimator, particles, task)) for particles in ("one_by_one", "shared")
    )
    for one, all_at_once in zip(turns, together, strict=True):
        torch.testing.assert_close(all_at_once.grad, one.grad, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(all_at_once.loss, one.loss)
        torch.testing.assert_close(all_at_once.metrics, one.metrics)
    assert norm(turns[1].grad) > 1e-3


@pytest.mark.parametrize(
    "score", ["log", *(pytest.param(x, marks=pytest.mark.slow) for x in ("loss", "relative"))]
)
@pytest.mark.parametrize("estimator", ["evolution", "pes"])
def test_a_perturbation_for_each_problem(kit, float64, estimator, score):  # noqa: ARG001
    """Each problem's run alone, under the same perturbations, is the answer."""
    method = _method(kit, estimator, "own", "Blobs", score=score)
    found = _estimates(method, 1)[0]

    run, part = method.run(0, 0)
    noise = perturbations(method.meta, 2, run.lanes, 0.05, generator("noise", 0))
    expected = zeros_like(method.meta)
    for lane, number in enumerate(run.numbers):
        alone = Run(method.rule, run.optimizee, "train", (number,), second_derivatives=False, score=score)
        inner, segment = alone.init(method.meta, generator(0)), method.segment(alone, part)
        for pair in range(2):
            direction = {key: leaf[pair, lane] for key, leaf in noise.items()}
            ahead, _ = play(alone, add(method.meta, direction), inner, segment)
            behind, _ = play(alone, add(method.meta, direction, -1.0), inner, segment)
            expected = add(expected, scale(direction, (ahead - behind) / (2 * 0.05**2)), 1 / 2)
    torch.testing.assert_close(found.grad, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_perturbation_for_each_problem_has_less_variance(kit, float64):  # noqa: ARG001
    """Same mean, and the more problems the nearer."""
    exact = _method(kit, "unrolled", "one_by_one", settings={}, second_derivatives=True, unroll=6)
    run, _ = exact.run(0, 0)
    start, segment = run.init(exact.meta, generator(0)), exact.segment(run, 0)
    wanted = exact.estimator.estimate(run, exact.meta, start, segment, generator(0)).grad
    errors = {}
    for particles in ("shared", "own"):
        method = _method(kit, "evolution", particles, settings={"pairs": 64, "deviation": 0.002}, unroll=6)
        errors[particles] = norm(add(_estimates(method, 1)[0].grad, wanted, -1.0)) / norm(wanted)
    assert errors["own"] < 0.7 * errors["shared"]


@pytest.mark.parametrize("particles", ["shared", "own"])
@pytest.mark.parametrize(
    "stop", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_swarm_survives_a_checkpoint(kit, particles, stop):
    def fresh():
        return kit.learner(
            kit.Blobs(), "pes", FEW, particles=particles, unroll=2, problems=2, hidden=3, layers=1
        )

    whole, first, second = fresh(), fresh(), fresh()
    losses = [whole.step(index)["train/meta_loss"] for index in range(4)]
    for index in range(stop):
        first.step(index)
    second.load_state_dict(kit.saved(first.state_dict()))
    resumed = [second.step(index)["train/meta_loss"] for index in range(stop, 4)]
    assert torch.equal(torch.stack(resumed), torch.stack(losses[stop:]))
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())


def test_estimators_without_particles_refuse_them(kit):
    with pytest.raises(UserError, match=r"method.particles: got own, .* hypergradient=pes or evolution"):
        kit.learner(kit.Blobs(), particles="own")
