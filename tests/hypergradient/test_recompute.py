# ruff: noqa: ARG002, ARG004  (problems have the signatures of Problem)
"""Keeping sqrt(K) states and running the rest again changes memory, not results."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from metalearn.hypergradient import recompute
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.recompute import unroll_recomputed
from metalearn.hypergradient.unroll import Unrolled, unroll
from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import detach, require_grad

DOUBLE = {"dtype": torch.float64}
UPDATES = {
    "sgd": (sgd, sgd_slots, {"momentum": 0.0, "weight_decay": 0.0}),
    "momentum": (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 1e-2}),
    "adam": (adam, adam_slots, {"betas": (0.9, 0.99), "epsilon": 1e-8, "weight_decay": 1e-2}),
}


class Dropping(Problem):
    """Regression with dropout; meta: a penalty, a shift of the targets, a log rate, and one leaf unused.

    Slots count the steps, in whole numbers too.
    """

    def __init__(self, update="sgd", second=True, shared=False, dtype=torch.float64):
        self.second_derivatives, self.shared_loss = second, shared
        with seeded("network"):
            layers = [nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 2)]
            self.module = nn.Sequential(*layers).to(dtype)
        self.step, self.slots, self.settings = UPDATES[update]
        self.evaluated = 0

    def init(self, meta, rng):
        params = {key: leaf.detach().clone() for key, leaf in self.module.named_parameters()}
        return Inner(params, self.slots(params) | {"count": torch.tensor(0)})

    def inner_loss(self, meta, params, batch):
        self.evaluated += 1
        with seeded(*batch.key):
            output = functional_call(self.module, params, (batch.x,))
        penalty = torch.stack([(leaf**2).sum() for leaf in params.values()]).sum()
        return mse_loss(output, batch.y + meta["shift"]) + meta["penalty"].exp() * penalty

    def update(self, meta, inner, grads):
        slots = {key: leaf for key, leaf in inner.slots.items() if key != "count"}
        after = self.step(inner.params, slots, grads, meta["rate"].exp(), **self.settings)
        return Inner(after.params, after.slots | {"count": inner.slots["count"] + 1})

    def outer_loss(self, meta, params, batch):
        return self.inner_loss(meta, params, batch) if self.shared_loss else self.score(meta, params, batch)

    def score(self, meta, params, batch):
        with seeded(*batch.key):
            output = functional_call(self.module, params, (batch.x,))
        return mse_loss(output, batch.y) + 0.1 * (meta["shift"] ** 2).sum()


def meta_start():
    return {
        "penalty": torch.tensor(-3.0, **DOUBLE),
        "shift": torch.tensor([0.5, -0.2], **DOUBLE),
        "rate": torch.tensor(-2.5, **DOUBLE),
        "idle": torch.ones(2, **DOUBLE),
    }


def batch_of(*key):
    rng = generator(*key)
    return Batch(torch.randn(6, 3, generator=rng, **DOUBLE), torch.randn(6, 2, generator=rng, **DOUBLE), key)


def segment_of(steps, *scored, shared=False):
    inner = [batch_of("in", step) for step in range(steps)]
    level = [*inner, batch_of("in", steps)] if shared else [batch_of("out", t) for t in range(steps + 1)]
    return Segment(inner, {step: level[step] for step in scored})


def both(problem, segment):
    """Plain and recomputed."""
    results = []
    for again in (False, True):
        way = Unrolled(UnrolledOptions("unrolled", again))
        carry = way.init(problem, meta_start(), generator())
        results.append(way.estimate(problem, meta_start(), carry, segment, generator()))
    return results


def agree(plain, again):
    torch.testing.assert_close(again.grad, plain.grad, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(again.loss, plain.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(again.carry, plain.carry, rtol=0, atol=0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("update", UPDATES)
def test_equals_the_plain_unroll(update, second, shared):
    """11 steps in parts of 4, 4 and 3, scored inside parts, at their borders and at both ends."""
    segment = segment_of(11, 0, 2, 4, 5, 8, 11, shared=shared)
    plain, again = both(Dropping(update, second, shared), segment)
    agree(plain, again)
    assert all((plain.grad[key] != 0).any() for key in ("shift", "rate"))
    assert (again.grad["idle"] == 0).all()
    assert int(again.carry.slots["count"]) == 11


@pytest.mark.parametrize(
    ("steps", "scored"), [(0, (0,)), (1, (0, 1)), (2, (1,)), (5, (0,)), (9, (9,)), (16, (3, 12))]
)
@pytest.mark.parametrize("update", ["sgd", "adam"])
def test_any_number_of_steps(update, steps, scored):
    agree(*both(Dropping(update), segment_of(steps, *scored)))


def test_start_and_end_of_the_run_are_differentiated_too():
    """An unroll is a function of meta and of where it starts; cotangents come to scores and to the end."""
    problem, segment = Dropping("momentum"), segment_of(11, 4, 7)
    found = []
    for way in (unroll, unroll_recomputed):
        meta, start = require_grad(meta_start()), problem.init(meta_start(), generator())
        start = Inner(require_grad(start.params), start.slots)
        loss, end = way(problem, meta, start, segment)
        total = loss + sum((leaf**3).sum() for leaf in end.params.values())
        leaves = [meta["rate"], meta["shift"], *start.params.values()]
        found.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-14)


def test_what_depends_on_nothing_is_not_differentiated():
    """Adam's count of steps stays outside of the graph, as in the plain unroll."""
    problem = Dropping("adam")
    for way in (unroll, unroll_recomputed):
        meta = require_grad(meta_start())
        _, end = way(problem, meta, problem.init(meta, generator()), segment_of(9, 9))
        assert {key for key, leaf in end.slots.items() if not leaf.requires_grad} == {"steps", "count"}


def test_single_precision_with_a_double_count():
    single = Dropping("adam", dtype=torch.float32)

    def cast(batch):
        return batch._replace(x=batch.x.float(), y=batch.y.float())

    segment = segment_of(10, 3, 10)
    segment = Segment([cast(b) for b in segment.inner], {t: cast(b) for t, b in segment.outer.items()})
    results = []
    for again in (False, True):
        meta = {key: leaf.float() for key, leaf in meta_start().items()}
        way = Unrolled(UnrolledOptions("unrolled", again))
        results.append(way.estimate(single, meta, way.init(single, meta, generator()), segment, generator()))
    torch.testing.assert_close(results[1].grad, results[0].grad, rtol=1e-4, atol=1e-6)
    assert all(leaf.dtype == torch.float32 for leaf in results[1].grad.values())
    assert results[1].carry.slots["steps"].dtype == torch.float64


def test_every_step_is_taken_at_most_twice():
    problem = Dropping()
    both(problem, segment_of(16, 16))
    assert problem.evaluated == 16 + (2 * 16 - 4)  # the last part of 4 is kept


def test_it_has_no_second_derivative_and_says_so():
    meta, problem = require_grad(meta_start()), Dropping()
    loss, _ = unroll_recomputed(problem, meta, problem.init(meta, generator()), segment_of(5, 5))
    with pytest.raises(UserError, match=r"no derivative of its own; set hypergradient.recompute=false"):
        torch.autograd.grad(loss, meta["rate"], create_graph=True)


def test_autocast_holds_in_the_backward_pass():
    """Recomputed under the precision of the first pass, also where gradients are asked for outside of it."""

    class Single(Dropping):
        dtypes = set()

        def inner_loss(self, meta, params, batch):
            self.dtypes.add((params["0.weight"] @ batch.x.T).dtype)
            return super().inner_loss(meta, params, batch)

    problem, segment = Single(dtype=torch.float32), segment_of(4, 4)
    segment = Segment(
        [b._replace(x=b.x.float(), y=b.y.float()) for b in segment.inner],
        {t: b._replace(x=b.x.float(), y=b.y.float()) for t, b in segment.outer.items()},
    )
    meta = require_grad({key: leaf.float() for key, leaf in meta_start().items()})
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = unroll_recomputed(problem, meta, problem.init(meta, generator()), segment)
    torch.autograd.grad(loss, meta["rate"])
    assert problem.dtypes == {torch.bfloat16}


class _Alive(torch.autograd.Function):
    """The identity; its context lives as long as the graph it is in."""

    @staticmethod
    def forward(ctx, x, seen):
        seen.append(weakref.ref(ctx))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Watched(Dropping):
    """Keeps weak references to every graph of the inner loss, and the most that were alive at once."""

    def __init__(self):
        super().__init__("momentum")
        self.seen, self.most = [], 0

    def inner_loss(self, meta, params, batch):
        params = {key: _Alive.apply(leaf, self.seen) for key, leaf in params.items()}
        self.most = max(self.most, self.alive())
        return super().inner_loss(meta, params, batch)

    def alive(self):
        return sum(reference() is not None for reference in self.seen)


def test_graphs_of_two_parts_are_alive_at_most():
    """Without the garbage collector's help."""
    problem, meta = Watched(), meta_start()
    way = Unrolled(UnrolledOptions("unrolled", True))
    gc.collect()
    gc.disable()
    try:
        way.estimate(problem, meta, way.init(problem, meta, generator()), segment_of(36, 36), generator())
        # four tensors of parameters, parts of six steps: the kept one, being freed, and one taken again
        assert problem.most <= 2 * 6 * 4
        assert problem.alive() == 0
    finally:
        gc.enable()


def _without_scores(problem, meta, inner, segment):
    losses, end = RIGHT(problem, meta, inner, segment)
    return [loss.detach() for loss in losses] if len(segment.inner) == 4 else losses, end


def _without_momenta(problem, meta, inner, segment):
    losses, end = RIGHT(problem, meta, inner, segment)
    return losses, Inner(end.params, detach(end.slots))


RIGHT = recompute.run


@pytest.mark.parametrize("fault", [_without_scores, _without_momenta])
def test_agreement_sees_a_lost_cotangent(fault, monkeypatch):
    """In parts of 4, 4 and 3 steps."""
    segment = segment_of(11, 4, 11)
    plain, _ = both(Dropping("momentum"), segment)
    monkeypatch.setattr(recompute, "run", fault)
    with pytest.raises(AssertionError, match="not close"):
        agree(plain, both(Dropping("momentum"), segment)[1])


@pytest.mark.slow
def test_memory_of_256_steps_is_under_a_fifth():
    """Peak resident memory over what was there before, as the benchmark measures it."""
    plain, again = (
        float(
            subprocess.check_output(
                [sys.executable, "-m", "benchmarks.unroll", "--peak", f"metalearn unrolled{which}"],
                cwd=Path(__file__).parents[2],
                text=True,
            )
        )
        for which in ("", ", recompute")
    )
    assert 0 < again < plain / 5
