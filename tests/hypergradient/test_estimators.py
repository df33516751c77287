# ruff: noqa: ARG002, ARG004  (problems have the signatures of Problem)
"""Every estimator against the numerically differentiated inner run, on a problem with distinct curvatures."""

import gc
import weakref

import pytest
import torch

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.unroll import unroll
from metalearn.inner_optimizers import sgd
from metalearn.problem import Inner, Problem, inner_step
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch
from metalearn.tree import scale

SIZE = 5
DOUBLE = {"dtype": torch.float64}


class SkewedQuadratic(Problem):
    """A rotated quadratic bowl with curvatures 0.05 to 4; meta: targets, log penalties, log learning rate.

    An isotropic bowl would hide a wrong direction; the batch shifts the bowl, so that batches differ.
    """

    def __init__(self, momentum: float, weight_decay: float = 0.0) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
        rng = generator("skewed")
        basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=rng, **DOUBLE)).Q
        self.hessian = basis @ torch.diag(torch.logspace(-1.3, 0.6, SIZE, **DOUBLE)) @ basis.T
        self.goal = torch.randn(SIZE, generator=rng, **DOUBLE)

    def init(self, meta, rng):
        params = {"w": torch.randn(SIZE, generator=rng, **DOUBLE)}
        return Inner(params, {"momentum/w": torch.randn(SIZE, generator=rng, **DOUBLE)})

    def inner_loss(self, meta, params, batch):
        away = params["w"] - meta["target"] - batch.x
        return 0.5 * away @ self.hessian @ away + 0.5 * (meta["penalty"].exp() * params["w"] ** 2).sum()

    def update(self, meta, inner, grads):
        rate = meta["rate"].exp()
        return sgd(inner.params, inner.slots, grads, rate, self.momentum, self.weight_decay)

    def outer_loss(self, meta, params, batch):
        away = params["w"] - self.goal - batch.x
        return (away**2).sum() + (away[0] * away[1]) ** 2 + 0.3 * (meta["target"] * params["w"]).sum()


def meta_start():
    rng = generator("meta")
    return {
        "target": torch.randn(SIZE, generator=rng, **DOUBLE),
        "penalty": torch.randn(SIZE, generator=rng, **DOUBLE) - 2,
        "rate": torch.tensor(-2.0, **DOUBLE),
        "idle": torch.ones(2, **DOUBLE),  # nothing depends on it
    }


def segment_of(steps, *scored):
    """`steps` inner batches, and outer ones at the steps in `scored`."""

    def batch(*key):
        x = 0.3 * torch.randn(SIZE, generator=generator(*key), **DOUBLE)
        return Batch(x, x, key)

    return Segment([batch("in", t) for t in range(steps)], {t: batch("out", t) for t in scored})


def estimate(way, problem, meta, segment):
    carry = way.init(problem, meta, generator("start"))
    return way.estimate(problem, meta, carry, segment, generator("noise"))


EXACT = [  # estimator, its setting, inner steps, scored after, relative error allowed
    ("first_order", 0, 0, (0,), 1e-9),
    ("finite_difference", 1e-2, 1, (1,), 1e-9),
    ("finite_difference", 1e-2, 1, (0, 1), 1e-9),
    ("unrolled", 0, 1, (1,), 1e-9),
    ("unrolled", 0, 7, (7,), 1e-9),
    ("unrolled", 0, 7, (0, 2, 3, 7), 1e-9),
    ("truncated", 7, 7, (0, 2, 3, 7), 1e-9),
]


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
@pytest.mark.parametrize(("name", "setting", "steps", "scored", "allowed"), EXACT)
def test_agrees_with_central_differences(
    name, setting, steps, scored, allowed, momentum, weight_decay,
    estimator, central_differences, play, relative_error,
):  # fmt: skip
    """The whole inner run, differentiated numerically, is the answer."""
    problem, meta, segment = SkewedQuadratic(momentum, weight_decay), meta_start(), segment_of(steps, *scored)
    inner = problem.init(meta, generator("start"))

    found = estimate(estimator(name, setting), problem, meta, segment)

    expected = central_differences(lambda moved: play(problem, moved, inner, segment), meta)
    assert relative_error(found.grad, expected) < allowed
    torch.testing.assert_close(found.loss, play(problem, meta, inner, segment))
    assert (found.grad["idle"] == 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("window", [1, 3])
def test_truncated_holds_the_steps_before_the_window(
    window, momentum, estimator, central_differences, play, relative_error
):
    """The exact gradient of a run whose first steps are taken under the meta-parameters of the start."""
    problem, meta, steps = SkewedQuadratic(momentum), meta_start(), 5
    segment = segment_of(steps, 1, 4, 5)
    places = [problem.init(meta, generator("start"))]
    for batch in segment.inner:
        places.append(inner_step(problem, meta, places[-1], batch).detach())
    split = steps - window
    early = {t: batch for t, batch in segment.outer.items() if t < split}
    late = Segment(segment.inner[split:], {t - split: b for t, b in segment.outer.items() if t >= split})

    def total(moved):
        partial = [problem.outer_loss(moved, places[t].params, batch) for t, batch in early.items()]
        return sum(partial) + play(problem, moved, places[split], late)

    found = estimate(estimator("truncated", window), problem, meta, segment)
    exact = estimate(estimator("unrolled"), problem, meta, segment)

    assert relative_error(found.grad, central_differences(total, meta)) < 1e-9
    assert relative_error(found.grad, exact.grad) > 0.01
    torch.testing.assert_close(found.carry, exact.carry)
    torch.testing.assert_close(found.loss, exact.loss)


def test_truncated_runs_on_where_its_window_is_not_scored(estimator):
    problem, meta, segment = SkewedQuadratic(0.9), meta_start(), segment_of(5, 1)
    found = estimate(estimator("truncated", 2), problem, meta, segment)
    exact = estimate(estimator("unrolled"), problem, meta, segment)
    torch.testing.assert_close(found.carry, exact.carry)


class Toy(Problem):
    """Liu et al. 2019, figure 2: alpha settles at 2 / (1 + 2 xi), the bilevel optimum being 1."""

    def __init__(self, xi: float) -> None:
        self.xi = xi

    def init(self, meta, rng):
        return Inner({"w": torch.tensor(-2.0, **DOUBLE)}, {})

    def inner_loss(self, meta, params, batch):
        return params["w"] ** 2 - 2 * meta["alpha"] * params["w"] + meta["alpha"] ** 2

    def update(self, meta, inner, grads):
        return sgd(inner.params, inner.slots, grads, self.xi, 0.0, 0.0)

    def outer_loss(self, meta, params, batch):
        return meta["alpha"] * params["w"] - 2 * meta["alpha"] + 1


@pytest.mark.parametrize(
    ("name", "xi"),
    [("first_order", 0.0), ("first_order", 0.5)]
    + [(name, xi) for name in ("finite_difference", "unrolled") for xi in (0.0, 0.25, 0.5)],
)
def test_toy_problem_settles_where_the_paper_says(name, xi, estimator):
    problem, way, segment = Toy(xi), estimator(name, 0.01), segment_of(1, 1)
    alpha = {"alpha": torch.tensor(2.0, **DOUBLE)}
    inner = problem.init(alpha, generator())
    for _ in range(300):
        grad = way.estimate(problem, alpha, inner, segment, generator()).grad["alpha"]
        alpha = {"alpha": alpha["alpha"] - 0.1 * grad}
        w = inner.params["w"]
        inner = Inner({"w": w - 0.1 * 2 * (w - alpha["alpha"])}, {})
    expected = 2.0 if name == "first_order" else 2 / (1 + 2 * xi)
    assert float(alpha["alpha"]) == pytest.approx(expected, abs=1e-8)
    assert float(inner.params["w"]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("xi", [0.25, 0.5])
def test_toy_gradient_is_the_derived_one(xi, estimator):
    """w' - 2 + 2 xi alpha at (2, -2), by finite difference and exactly (the sheet, section 1.2)."""
    for name in ("finite_difference", "unrolled"):
        problem, meta = Toy(xi), {"alpha": torch.tensor(2.0, **DOUBLE)}
        found = estimate(estimator(name, 0.01), problem, meta, segment_of(1, 1))
        after = -2 - 2 * xi * (-2 - 2)
        assert float(found.grad["alpha"]) == pytest.approx(after - 2 + 2 * xi * 2, rel=1e-12)
        assert float(found.carry.params["w"]) == pytest.approx(after)


def _misplaced_parentheses(self, problem, meta, params, u, batch):
    """(p - n) / 2. * eps, as in a well-known re-implementation (the sheet, section 9.15)."""
    right = RIGHT(self, problem, meta, params, u, batch)
    eps = self.radius / torch.linalg.vector_norm(u["w"])
    return scale(right, eps**2)


def _halved(self, problem, meta, params, u, batch):
    return scale(RIGHT(self, problem, meta, params, u, batch), 0.5)


def _reversed(self, problem, meta, params, u, batch):
    return scale(RIGHT(self, problem, meta, params, u, batch), -1.0)


def _other_batch(self, problem, meta, params, u, batch):
    return RIGHT(self, problem, meta, {"w": params["w"] + 0.5}, u, batch)


RIGHT = FiniteDifference._difference


@pytest.mark.parametrize("fault", [_misplaced_parentheses, _halved, _reversed, _other_batch])
def test_agreement_sees_a_wrong_quotient(fault, monkeypatch, estimator, relative_error):
    problem, meta, segment = SkewedQuadratic(0.9), meta_start(), segment_of(1, 1)
    exact = estimate(estimator("unrolled"), problem, meta, segment).grad
    monkeypatch.setattr(FiniteDifference, "_difference", fault)
    wrong = estimate(estimator("finite_difference", 1e-2), problem, meta, segment).grad
    assert relative_error(wrong, exact) > 1e-3  # the agreement test allows 1e-9


class Flat(SkewedQuadratic):
    """An outer loss that the inner parameters do not touch."""

    def outer_loss(self, meta, params, batch):
        return (meta["target"] ** 2).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_difference_of_a_zero_direction_is_zero(dtype, estimator):
    problem = Flat(0.9)
    problem.hessian = problem.hessian.to(dtype)
    meta = {key: leaf.to(dtype) for key, leaf in meta_start().items()}
    segment = segment_of(1, 1)
    batch = segment.inner[0]._replace(x=segment.inner[0].x.to(dtype))
    way = estimator("finite_difference", 0.01)
    inner = way.init(problem, meta, generator("start"))
    carry = Inner(*({key: leaf.to(dtype) for key, leaf in tree.items()} for tree in inner))
    found = way.estimate(problem, meta, carry, Segment([batch], segment.outer), generator())
    torch.testing.assert_close(found.grad["target"], 2 * meta["target"])
    assert (found.grad["penalty"] == 0).all()
    assert (found.grad["rate"] == 0).all()


class NoOuter(SkewedQuadratic):
    """An outer loss without any gradient."""

    def outer_loss(self, meta, params, batch):
        return params["w"].detach().sum()


@pytest.mark.parametrize("name", ["first_order", "finite_difference", "unrolled", "truncated"])
def test_undefined_gradients_are_zeros(name, estimator):
    meta = meta_start()
    found = estimate(estimator(name, 1), NoOuter(0.9), meta, segment_of(1, 1))
    assert set(found.grad) == set(meta)
    assert all((leaf == 0).all() and leaf.shape == meta[key].shape for key, leaf in found.grad.items())


def test_first_order_leaves_the_run_where_it_was(estimator):
    """A partial derivative at the weights as they are, whatever the segment's steps."""
    problem, meta = SkewedQuadratic(0.9), meta_start()
    found = estimate(estimator("first_order"), problem, meta, segment_of(1, 1))
    start = problem.init(meta, generator("start"))
    torch.testing.assert_close(found.carry, start, rtol=0, atol=0)
    torch.testing.assert_close(found.grad["target"], 0.3 * start.params["w"])
    assert (found.grad["penalty"] == 0).all()


@pytest.mark.parametrize("steps", [0, 3])
def test_finite_difference_takes_one_step(steps, estimator):
    with pytest.raises(UserError, match=f"got {steps} inner steps, it takes exactly 1; .*unrolled"):
        estimate(
            estimator("finite_difference", 0.01), SkewedQuadratic(0.0), meta_start(), segment_of(steps, steps)
        )


def test_truncated_refuses_a_window_longer_than_the_segment(estimator):
    with pytest.raises(UserError, match="window 30 is longer than the segment of 20 inner steps; lower"):
        estimate(estimator("truncated", 30), SkewedQuadratic(0.0), meta_start(), segment_of(20, 20))


@pytest.mark.parametrize("name", ["first_order", "finite_difference", "unrolled", "truncated"])
@pytest.mark.parametrize("scored", [(), (2,), (-1,)])
def test_outer_batches_outside_the_segment_are_refused(name, scored, estimator):
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        estimate(estimator(name, 1), SkewedQuadratic(0.0), meta_start(), segment_of(1, *scored))


@pytest.mark.parametrize("name", ["first_order", "finite_difference", "unrolled", "truncated"])
def test_results_are_detached_and_inputs_untouched(name, estimator):
    problem, meta = SkewedQuadratic(0.9), {key: leaf.requires_grad_() for key, leaf in meta_start().items()}
    way = estimator(name, 1)
    carry = way.init(problem, meta, generator("start"))
    copy = {key: leaf.clone() for key, leaf in carry.params.items()}
    found = way.estimate(problem, meta, carry, segment_of(1, 1), generator())
    results = [*found.grad.values(), found.loss, *found.carry.params.values(), *found.carry.slots.values()]
    assert not any(tensor.requires_grad for tensor in results)
    assert not any(leaf.requires_grad for leaf in carry.params.values())
    assert all(leaf.grad is None for leaf in meta.values())
    torch.testing.assert_close(carry.params, copy, rtol=0, atol=0)


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # only under create_graph
            raise RuntimeError("differentiated twice")
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class NoDoubleBackward(SkewedQuadratic):
    """An inner loss that autograd can differentiate once only."""

    def inner_loss(self, meta, params, batch):
        return (_OnceDifferentiable.apply(params["w"]) * meta["target"]).sum()


def test_finite_difference_differentiates_inner_loss_once(
    estimator, central_differences, play, relative_error
):
    problem, meta, segment = NoDoubleBackward(0.9), meta_start(), segment_of(1, 1)
    inner = problem.init(meta, generator("start"))
    found = estimate(estimator("finite_difference", 1e-4), problem, meta, segment)
    expected = central_differences(lambda moved: play(problem, moved, inner, segment), meta)
    assert relative_error(found.grad, expected) < 1e-8
    with pytest.raises(RuntimeError, match="differentiated twice"):
        estimate(estimator("unrolled"), problem, meta, segment)


class _Alive(torch.autograd.Function):
    """The identity; its context lives as long as the graph it is in."""

    @staticmethod
    def forward(ctx, x, seen):
        seen.append(weakref.ref(ctx))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Watched(SkewedQuadratic):
    """Keeps weak references to every graph of the inner loss."""

    def __init__(self) -> None:
        super().__init__(0.9)
        self.seen = []

    def inner_loss(self, meta, params, batch):
        params = {"w": _Alive.apply(params["w"] + meta["target"], self.seen)}
        return super().inner_loss(meta, params, batch)

    def alive(self):
        return sum(reference() is not None for reference in self.seen)


@pytest.mark.parametrize("name", ["finite_difference", "unrolled", "truncated"])
def test_the_graph_is_freed_without_the_garbage_collector(name, estimator):
    problem, meta, steps = Watched(), meta_start(), 1 if name == "finite_difference" else 6
    gc.collect()
    gc.disable()
    try:
        found = estimate(
            estimator(name, {"truncated": 3}.get(name, 0.01)), problem, meta, segment_of(steps, steps)
        )
        assert len(problem.seen) >= steps
        assert problem.alive() == 0
        leaves = {key: leaf.requires_grad_() for key, leaf in meta.items()}
        kept = unroll(problem, leaves, found.carry, segment_of(6, 6))
        assert problem.alive() == 6  # the references do see a graph
        del kept
        assert problem.alive() == 0
    finally:
        gc.enable()
