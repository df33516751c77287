"""The meta-gradient against central differences of the whole unroll, in float64.

The checks of an implementation of Andrychowicz et al. 2016 (specification sheet, section 6), and where they
are: 1 (the gradients replayed as constants), 5 (the boundary of unrolls) and 7 (one point teaches nothing)
here, with truncated = unrolled where their windows coincide; 2 (hand-written rules are torch's) and 3
(permuted coordinates) in test_rules; 4 (preprocessing) in test_preprocess; 6 (counts) in test_lstm.
"""

import pytest
import torch

from metalearn.hypergradient.base import Segment
from metalearn.learned_optimizers.run import Run
from metalearn.problem import Inner, inner_step, loss_and_gradient
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.tree import detach, require_grad, scale, tree_map

TASKS = ["Blobs", pytest.param("Quadratics", marks=pytest.mark.slow)]
NUMBERS = 2  # of each leaf of meta-parameters that are moved alone
STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # fourth order


def _method(kit, task, **changes):
    """A method whose LSTM makes large enough updates for differences to be seen.

    Without preprocessing on the quadratics: there the second derivatives weigh most.
    """
    seen = "none" if task == "Quadratics" else "log_sign"
    method = kit.learner(getattr(kit, task)(), hidden=3, output_scale=0.5, preprocess=seen, **changes)
    fresh = method.rule.init(generator("weights"))
    method.meta = {key: leaf.double().requires_grad_() for key, leaf in fresh.items()}
    return method


def _start(method):
    return method.estimator.init(_run(method), method.meta, generator(0))


def _run(method):
    return method.run(0, 0)[0]


def _estimate(method, carry, segment):
    return method.estimator.estimate(_run(method), method.meta, carry, segment, generator(0))


def _score(run, theta, batch):
    """What the run scores there, from each problem's plain loss."""
    losses = run.optimizee.losses(theta, batch)
    if run.score == "relative":
        start = run.optimizee.start(run.split, run.numbers)
        losses = losses / run.optimizee.losses(start, run.batches(0, 1)[0])
    return (losses.log() if run.score == "log" else losses).sum().detach()


def _total(method, meta, inner, segment, replayed=None):
    """The meta-objective, computed step by step; gradients are those recorded in `replayed`, if given."""
    run, total = _run(method), torch.zeros(())
    for step, batch in enumerate(segment.inner):
        if step in segment.outer:
            total = total + _score(run, inner.params["theta"], segment.outer[step])
        if replayed is None:
            inner = inner_step(run, meta, inner, batch).detach()
        else:
            inner = run.update(meta, inner, replayed[step])
    if len(segment.inner) in segment.outer:
        total = total + _score(run, inner.params["theta"], segment.outer[len(segment.inner)])
    return total.detach()


def _record(method, inner, segment):
    recorded, meta = [], detach(method.meta)
    for batch in segment.inner:
        _, grads = loss_and_gradient(_run(method), meta, inner.params, batch)
        recorded.append(grads)
        inner = _run(method).update(meta, inner, grads)
    return recorded


def _assert_derivatives(grad, function, meta, step=1e-3):
    """Against central differences along a random direction in each leaf, and at a few of its numbers."""
    largest = 0.0
    for key, leaf in meta.items():
        rng = generator("directions", key)
        directions = [torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype)]
        for place in torch.randperm(leaf.numel(), generator=rng)[:NUMBERS].tolist():
            directions.append(torch.zeros_like(leaf, requires_grad=False))
            directions[-1].view(-1)[place] = 1.0
        for direction in directions:
            expected = torch.zeros(())
            for side, weight in STENCIL.items():
                moved = detach(meta) | {key: leaf.detach() + side * step * direction}
                expected = expected + weight * function(moved) / step
            found = (grad[key] * direction).sum()
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
            largest = max(largest, expected.abs().item())
    assert largest > 1e-2


@pytest.mark.parametrize("count_last", [False, True])
@pytest.mark.parametrize("second_derivatives", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", TASKS)
def test_agrees_with_central_differences(kit, float64, task, second_derivatives, count_last):  # noqa: ARG001
    """Without second derivatives: those of the unroll with its gradients replayed as constants."""
    method = _method(kit, task, second_derivatives=second_derivatives, count_last=count_last)
    carry, segment = _start(method), method.segment(_run(method), 0)
    replayed = None if second_derivatives else _record(method, carry, segment)

    estimate = _estimate(method, carry, segment)

    _assert_derivatives(
        estimate.grad, lambda meta: _total(method, meta, carry, segment, replayed), method.meta
    )
    torch.testing.assert_close(estimate.loss, _total(method, method.meta, carry, segment))


SCORES = [  # score, objective, second derivatives
    pytest.param("relative", "all", False, marks=pytest.mark.slow),
    ("log", "last", False),
    pytest.param("log", "all", False, marks=pytest.mark.slow),
    pytest.param("log", "all", True, marks=pytest.mark.slow),
    pytest.param("relative", "last", True, marks=pytest.mark.slow),
    pytest.param("loss", "last", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("score", "objective", "second_derivatives"), SCORES)
@pytest.mark.parametrize("task", TASKS)
def test_scores_agree_with_central_differences(kit, float64, task, score, objective, second_derivatives):  # noqa: ARG001
    """In the second unroll, where the first loss of the run lies behind; problems of different scale."""
    method = _method(
        kit,
        task,
        score=score,
        objective=objective,
        second_derivatives=second_derivatives,
        count_last=True,
        problems=2,
    )
    run = _run(method)
    carry, segment = _estimate(method, _start(method), method.segment(run, 0)).carry, method.segment(run, 1)
    replayed = None if second_derivatives else _record(method, carry, segment)

    estimate = _estimate(method, carry, segment)

    _assert_derivatives(
        estimate.grad, lambda meta: _total(method, meta, carry, segment, replayed), method.meta
    )
    torch.testing.assert_close(estimate.loss, _total(method, method.meta, carry, segment, replayed))
    assert list(segment.outer) == ([3] if objective == "last" else [0, 1, 2, 3])


def test_relative_and_log_scores_weigh_problems_alike(kit, float64):  # noqa: ARG001
    """A hundred times the losses of a problem leave its part of the objective's gradient as it was."""
    method = _method(kit, "Quadratics", problems=2)
    theta, batch = method.family.draw("train", 0).start("train", (0, 1)), _run(method).batches(0, 1)[0]
    factors = torch.logspace(0, 2, len(theta))
    scaled = batch._replace(x=batch.x * factors.sqrt()[:, None, None], y=batch.y * factors.sqrt()[:, None])
    for score, alike in (("loss", False), ("relative", True), ("log", True)):
        method = _method(kit, "Quadratics", problems=2, score=score)
        slopes = []
        for each in (batch, scaled):
            run = method._begun(0)
            run.batches = lambda first, count, each=each: [each] * count  # noqa: ARG005
            slopes.append(run.score_and_gradients({"theta": theta}, each)[1]["theta"])
        assert torch.allclose(*slopes) == alike


def test_last_needs_a_last_point(kit):
    with pytest.raises(
        UserError, match=r"objective: got last with count_last=false, .* method.count_last=true"
    ):
        kit.learner(kit.Blobs(), objective="last", count_last=False)


PARITY = [
    ("unrolled", {}),
    ("pes", {"pairs": 2}),
    pytest.param("evolution", {"pairs": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("estimator", "settings"), PARITY)
@pytest.mark.parametrize("task", TASKS)
def test_side_by_side_is_the_mean_of_one_by_one(kit, float64, monkeypatch, task, estimator, settings):  # noqa: ARG001
    """Two groups of three problems; one perturbation for all, as the same generator gives it."""
    monkeypatch.setattr("metalearn.learned_optimizers.meta_train.generator", lambda *_: generator("same"))
    shape = {"groups": 2, "problems": 3}
    method = kit.learner(getattr(kit, task)(), estimator, settings, hidden=3, count_last=True, **shape)
    fresh = method.rule.init(generator("weights"))
    method.meta = {key: leaf.double().requires_grad_() for key, leaf in fresh.items()}
    method.optimizer = torch.optim.Adam(method.meta.values(), 0.01)
    optimizee, meta = method.family.draw("train", 0), require_grad(method.meta)
    grads, losses = [], []
    for number in range(6):
        run = Run(method.rule, optimizee, "train", (number,), second_derivatives=False)
        carry = method.estimator.init(run, meta, generator("same"))
        found = method.estimator.estimate(run, meta, carry, method.segment(run, 0), generator("same"))
        grads.append(scale(found.grad, 1 / run.weight))
        losses.append(found.loss / run.weight / 4)

    told = method.step(0)

    for key, leaf in method.meta.items():
        expected = torch.stack([grad[key] for grad in grads]).mean(0)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(told["train/meta_loss"], torch.stack(losses).mean())


@pytest.mark.parametrize("count_last", [False, True])
def test_truncated_is_unrolled_where_their_windows_coincide(kit, float64, count_last):  # noqa: ARG001
    """The same gradients in every step of two runs, so the same rule; a shorter window is another."""
    after = {}
    for name, settings in (("unrolled", {}), ("truncated", {"window": 3}), ("truncated", {"window": 2})):
        method = kit.learner(kit.Blobs(), name, settings, hidden=3, count_last=count_last)
        for index in range(4):
            method.step(index)
        after[name, settings.get("window")] = method.meta["lstm.0.weight"].detach()
    assert torch.allclose(after["truncated", 3], after["unrolled", None], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(after["truncated", 2], after["unrolled", None], rtol=1e-3, atol=1e-4)


def test_second_derivatives_matter_here(kit, float64):  # noqa: ARG001
    """Else the test above could not tell the two modes apart."""
    grads = []
    for second_derivatives in (False, True):
        method = _method(kit, "Quadratics", second_derivatives=second_derivatives)
        grads.append(_estimate(method, _start(method), method.segment(_run(method), 0)).grad["linear.weight"])
    assert (grads[0] - grads[1]).norm() > 1e-4 * grads[1].norm()  # a hundred times the tolerance above


@pytest.mark.parametrize("count_last", [False, True])
def test_one_point_has_no_meta_gradient(kit, float64, count_last):  # noqa: ARG001
    """phi moves theta_1 first, so that an unroll of one step teaches only if its last point counts."""
    method = _method(kit, "Quadratics")
    batches = method.segment(_run(method), 0).inner
    grad = _estimate(
        method, _start(method), Segment(batches[:1], dict(enumerate(batches[: 1 + count_last])))
    ).grad
    assert any(leaf.any() for leaf in grad.values()) == count_last


def test_the_second_unroll_knows_the_first_by_value_only(kit, float64):  # noqa: ARG001
    """Its meta-gradient is that of a run which starts at the carried values."""
    method = _method(kit, "Blobs")
    first = _estimate(method, _start(method), method.segment(_run(method), 0))
    assert not any(leaf.requires_grad for tree in first.carry for leaf in tree.values())

    second = _estimate(method, first.carry, method.segment(_run(method), 1))

    anew = Inner(*(tree_map(lambda leaf: leaf.clone(), tree) for tree in first.carry))
    expected = _estimate(method, anew, method.segment(_run(method), 1))
    assert all(torch.equal(second.grad[key], leaf) for key, leaf in expected.grad.items())
    whole = Segment(
        [*method.segment(_run(method), 0).inner, *method.segment(_run(method), 1).inner],
        dict(enumerate([*method.segment(_run(method), 0).inner, *method.segment(_run(method), 1).inner])),
    )
    complete = _estimate(method, _start(method), whole)
    torch.testing.assert_close(complete.loss, first.loss + second.loss)
    torch.testing.assert_close(complete.carry.params, second.carry.params)
    torch.testing.assert_close(complete.carry.slots, second.carry.slots)
    cut = first.grad["linear.weight"] + second.grad["linear.weight"]
    assert (complete.grad["linear.weight"] - cut).norm() > 1e-3 * cut.norm()


def test_a_step_of_the_method_is_adam_on_the_mean_over_functions(kit, float64):  # noqa: ARG001
    method = _method(kit, "Quadratics", clip=None)
    before = {key: leaf.detach().clone() for key, leaf in method.meta.items()}
    method.optimizer = torch.optim.Adam(method.meta.values(), 0.01)
    expected = scale(_estimate(method, _start(method), method.segment(_run(method), 0)).grad, 1 / 4)
    method.step(0)
    for key, leaf in method.meta.items():
        torch.testing.assert_close(leaf.grad, expected[key])
        moved = before[key] - 0.01 * expected[key] / (expected[key].abs() + 1e-8)
        torch.testing.assert_close(leaf.detach(), moved)
