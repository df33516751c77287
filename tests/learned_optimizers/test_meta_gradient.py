"""The meta-gradient against central differences of the whole unroll, in float64."""

import pytest
import torch

from metalearn.hypergradient.base import Segment
from metalearn.problem import Inner, inner_step, loss_and_gradient
from metalearn.rng import generator
from metalearn.tree import detach, scale, tree_map

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


def _total(method, meta, inner, segment, replayed=None):
    """The meta-objective, computed step by step; gradients are those recorded in `replayed`, if given."""
    total = torch.zeros(())
    for step, batch in enumerate(segment.inner):
        if step in segment.outer:
            total = total + _run(method).outer_loss(meta, inner.params, segment.outer[step]).detach()
        if replayed is None:
            inner = inner_step(_run(method), meta, inner, batch).detach()
        else:
            inner = _run(method).update(meta, inner, replayed[step])
    if len(segment.inner) in segment.outer:
        total = total + _run(method).outer_loss(meta, inner.params, segment.outer[len(segment.inner)])
    return total.detach()


def _record(method, inner, segment):
    recorded, meta = [], detach(method.meta)
    for batch in segment.inner:
        _, grads = loss_and_gradient(_run(method), meta, inner.params, batch)
        recorded.append(grads)
        inner = _run(method).update(meta, inner, grads)
    return recorded


def _central_differences(function, meta, step=1e-3):
    grad = tree_map(torch.zeros_like, meta)
    for key, leaf in meta.items():
        for index in range(leaf.numel()):
            for side, weight in STENCIL.items():
                moved = leaf.detach().clone().flatten()
                moved[index] += side * step
                grad[key].view(-1)[index] += (
                    weight * function(detach(meta) | {key: moved.view_as(leaf)}) / step
                )
    return grad


@pytest.mark.parametrize("count_last", [False, True])
@pytest.mark.parametrize("second_derivatives", [False, True])
@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_agrees_with_central_differences(kit, float64, task, second_derivatives, count_last):  # noqa: ARG001
    """Without second derivatives: those of the unroll with its gradients replayed as constants."""
    method = _method(kit, task, second_derivatives=second_derivatives, count_last=count_last)
    carry, segment = _start(method), method.segment(_run(method), 0)
    replayed = None if second_derivatives else _record(method, carry, segment)

    estimate = _estimate(method, carry, segment)

    expected = _central_differences(lambda meta: _total(method, meta, carry, segment, replayed), method.meta)
    assert max(leaf.abs().max() for leaf in expected.values()) > 1e-2
    for key, leaf in expected.items():
        torch.testing.assert_close(estimate.grad[key], leaf, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(estimate.loss, _total(method, method.meta, carry, segment))


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
