# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Learned optimizers: gradients as constants, by injection and plainly; segments of one run (l2l.md, 6)."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.unroll import unroll
from metalearn.problem import Inner, Problem
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import Tree, gradient, require_grad

DOUBLE = {"dtype": torch.float64}
HIDDEN = 3


class _Counting(torch.autograd.Function):
    """The identity; counts how often anything is propagated back through it, and lives with its graph."""

    @staticmethod
    def forward(ctx, x, counter, seen):
        ctx.counter = counter
        seen.append(weakref.ref(ctx))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.counter["backward"] += 1
        return grad, None, None


class Learned(Problem):
    """A coordinatewise recurrent update with learned weights trains a tanh network.

    `direct` makes the loss depend on the meta-parameters themselves too.
    """

    def __init__(self, second=False, shared=True, direct=False):
        self.second_derivatives, self.shared_loss, self.direct = second, shared, direct
        with seeded("optimizee"):
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.counter = {"forward": 0, "backward": 0}
        self.seen = []

    def init(self, meta, rng):
        params = {key: leaf.detach().clone() for key, leaf in self.net.named_parameters()}
        return Inner(
            params, {f"h/{key}": leaf.new_zeros(*leaf.shape, HIDDEN) for key, leaf in params.items()}
        )

    def inner_loss(self, meta, params, batch):
        self.counter["forward"] += 1
        output = functional_call(self.net, params, (batch.x,))
        loss = ((_Counting.apply(output, self.counter, self.seen) - batch.y) ** 2).mean()
        return (
            loss + (meta["out"] ** 2).sum() * sum((p**2).sum() for p in params.values())
            if self.direct
            else loss
        )

    outer_loss = inner_loss

    def update(self, meta, inner, grads):
        params, slots = {}, {}
        for key, leaf in inner.params.items():
            seen = grads[key].unsqueeze(-1) * meta["in"] + inner.slots[f"h/{key}"] @ meta["back"]
            slots[f"h/{key}"] = torch.tanh(seen)
            params[key] = leaf + slots[f"h/{key}"] @ meta["out"]
        return Inner(params, slots)


def meta_start():
    rng = generator("phi")
    shapes = {"in": (HIDDEN,), "back": (HIDDEN, HIDDEN), "out": (HIDDEN,)}
    return {key: 0.4 * torch.randn(shape, generator=rng, **DOUBLE) for key, shape in shapes.items()}


def batch_of(*key):
    rng = generator(*key)
    x = torch.randn(8, 3, generator=rng, **DOUBLE)
    return Batch(x, x.sum(1, keepdim=True).sin(), key)


def segment_of(steps, start=0):
    """Every visited point is scored on the batch of the step from it, the last one on the batch to come."""
    batches = [batch_of("train", start + step) for step in range(steps + 1)]
    return Segment(batches[:steps], dict(enumerate(batches)))


def estimate(way, problem, segment, carry=None, meta=None):
    meta = meta_start() if meta is None else meta
    carry = way.init(problem, meta, generator()) if carry is None else carry
    return way.estimate(problem, meta, carry, segment, generator())


def replay(problem, meta: Tree, inner: Inner, segment: Segment) -> Tree:
    """Gradients are recorded first; a second run takes them as constants, its losses in one plain graph."""
    recorded, start = [], inner
    for batch in segment.inner:
        leaves = require_grad(inner.params)
        recorded.append(gradient(problem.inner_loss(meta, leaves, batch), leaves))
        inner = problem.update(meta, inner, recorded[-1]).detach()
    leaves, inner, total = require_grad(meta), start, torch.zeros((), **DOUBLE)
    for step in range(len(segment.inner) + 1):
        if step in segment.outer:
            total = total + problem.outer_loss(leaves, inner.params, segment.outer[step])
        if step < len(segment.inner):
            inner = problem.update(leaves, inner, recorded[step])
    return gradient(total, leaves)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_constants(shared, direct, estimator):
    """The sheet's check 1; `shared` is the injected path."""
    problem, segment = Learned(shared=shared, direct=direct), segment_of(6)
    found = estimate(estimator("unrolled"), problem, segment)
    expected = replay(problem, meta_start(), problem.init(meta_start(), generator()), segment)
    torch.testing.assert_close(found.grad, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("direct", [False, True])
def test_injected_plain_and_partly_shared_agree(direct, estimator):
    """Outer batches may be the inner ones, others, or absent, step by step."""
    segment = segment_of(6)
    mixed = dict(segment.outer) | {1: batch_of("valid", 1), 6: batch_of("valid", 6)}
    del mixed[3]
    for outer in (segment.outer, mixed):
        results = [
            estimate(
                estimator("unrolled"), Learned(shared=shared, direct=direct), Segment(segment.inner, outer)
            )
            for shared in (True, False)
        ]
        torch.testing.assert_close(results[0].grad, results[1].grad, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(results[0].loss, results[1].loss)
        torch.testing.assert_close(results[0].carry, results[1].carry, rtol=0, atol=0)


def test_an_equal_batch_that_is_another_object_is_not_shared(estimator):
    """Sharing is decided by identity: tensors are not compared."""
    segment = segment_of(3)
    copies = {step: Batch(*batch) for step, batch in segment.outer.items()}
    problem = Learned()
    other = estimate(estimator("unrolled"), problem, Segment(segment.inner, copies))
    assert problem.counter["forward"] == 3 + 4
    torch.testing.assert_close(other.grad, estimate(estimator("unrolled"), Learned(), segment).grad)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_with_second_derivatives_it_is_exact(
    shared, direct, estimator, central_differences, play, relative_error
):
    problem, segment, meta = Learned(second=True, shared=shared, direct=direct), segment_of(5), meta_start()
    inner = problem.init(meta, generator())
    found = estimate(estimator("unrolled"), problem, segment)
    expected = central_differences(lambda moved: play(problem, moved, inner, segment), meta)
    assert relative_error(found.grad, expected) < 1e-8
    constant = estimate(estimator("unrolled"), Learned(direct=direct), segment)
    assert relative_error(constant.grad, expected) > 1e-2  # the difference that check 1 sees
    torch.testing.assert_close(constant.loss, found.loss)


def test_the_optimizee_is_run_once_a_step_and_never_propagated_through_again(estimator):
    steps, problem = 6, Learned()
    estimate(estimator("unrolled"), problem, segment_of(steps))
    assert problem.counter == {"forward": steps + 1, "backward": steps + 1}
    plain = Learned(shared=False)
    estimate(estimator("unrolled"), plain, segment_of(steps))
    assert plain.counter["forward"] == 2 * steps + 1  # what injection saves


def test_injection_keeps_no_graph_of_the_optimizee():
    """While the unroll's graph is alive, those of the optimizee's steps are gone."""
    problem, meta = Learned(), require_grad(meta_start())
    gc.collect()
    gc.disable()
    try:
        loss, inner = unroll(problem, meta, problem.init(meta, generator()), segment_of(5))
        alive = [reference() is not None for reference in problem.seen]
        assert alive == [False] * 5 + [True]  # the last point's loss is plain
        assert loss.requires_grad
        assert inner.params["0.weight"].requires_grad
    finally:
        gc.enable()


@pytest.mark.parametrize("second", [False, True])
def test_segments_carry_values_and_cut_history(second, estimator, relative_error):
    """The sheet's check 5: two segments visit what one does, and share no graph."""
    way = estimator("unrolled")
    whole = estimate(way, Learned(second), segment_of(8))
    first = estimate(way, Learned(second), segment_of(4))
    carried = first.carry
    tensors = [*carried.params.values(), *carried.slots.values()]
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors)
    later = estimate(way, Learned(second), segment_of(4, start=4), carried)
    torch.testing.assert_close(later.carry, whole.carry)

    fresh = Inner(*({key: leaf.clone() for key, leaf in tree.items()} for tree in carried))
    alone = estimate(way, Learned(second), segment_of(4, start=4), fresh)
    torch.testing.assert_close(later.grad, alone.grad, rtol=0, atol=0)
    both = {key: first.grad[key] + later.grad[key] for key in first.grad}
    assert relative_error(both, whole.grad) > 1e-2  # the cut is real


def test_one_point_before_the_first_update_has_no_meta_gradient(estimator):
    """The sheet's check 7."""
    segment = segment_of(1)
    found = estimate(estimator("unrolled"), Learned(), Segment(segment.inner, {0: segment.outer[0]}))
    assert all((leaf == 0).all() for leaf in found.grad.values())
    both = estimate(estimator("unrolled"), Learned(), segment)
    assert all((leaf != 0).any() for key, leaf in both.grad.items() if key != "back")


def test_finite_difference_treats_gradients_as_constants_too(estimator):
    problem, segment = Learned(), segment_of(1)
    found = estimate(estimator("finite_difference", 1e-2), problem, segment)
    torch.testing.assert_close(found.grad, estimate(estimator("unrolled"), problem, segment).grad)
