# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Evolution strategies: right on average, by how much, and with common noise; on networks also `Pes`."""

import itertools
import math

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import mse_loss

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import EvolutionOptions, PesOptions
from metalearn.hypergradient.evolution import Evolution
from metalearn.hypergradient.particles import Contrast, perturbation
from metalearn.hypergradient.particles import play as play_values
from metalearn.hypergradient.pes import Pes
from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem, inner_step
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import add, dot, gradient, norm, scale

DOUBLE = {"dtype": torch.float64}
BOUND = 4.0  # standard errors; a right mean is further off once in 16000, for each entry


def evolution(pairs, deviation=0.01):
    return Evolution(EvolutionOptions("evolution", pairs, deviation))


def pes(pairs, deviation=0.01):
    return Pes(PesOptions("pes", pairs, deviation))


def batch(*key, size=2):
    x = torch.randn(size, generator=generator(*key), **DOUBLE)
    return Batch(x, x, key)


def segment_of(steps, *scored):
    return Segment([batch("in", t) for t in range(steps)], {t: batch("out", t) for t in scored})


def vector(tree):
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


class Bowl(Problem):
    """Two distinct curvatures; meta: the target and a log rate; quadratic in meta if that is `fixed`."""

    curvature = torch.tensor([2.0, 0.5], **DOUBLE)

    def __init__(self, momentum=0.9, fixed=False):
        self.momentum, self.fixed = momentum, fixed

    def init(self, meta, rng):
        params = {"w": torch.tensor([1.0, -2.0], **DOUBLE)}
        return Inner(params, sgd_slots(params))

    def inner_loss(self, meta, params, batch):
        return 0.5 * (self.curvature * (params["w"] - meta["target"] - 0.1 * batch.x).square()).sum()

    def update(self, meta, inner, grads):
        rate = 0.2 if self.fixed else meta["rate"].exp()
        return sgd(inner.params, inner.slots, grads, rate, self.momentum, 0.0)

    def outer_loss(self, meta, params, batch):
        return (params["w"] - batch.x).square().sum() + 0.3 * (meta["target"] * params["w"]).sum()


META = {"target": torch.tensor([0.5, 1.0], **DOUBLE), "rate": torch.tensor(-1.5, **DOUBLE)}


def drawn(way, problem, meta, segment, repetitions):
    """Independent estimates [repetition meta]."""
    carry = way.init(problem, meta, generator())
    return torch.stack(
        [
            vector(way.estimate(problem, meta, carry, segment, generator("noise", k)).grad)
            for k in range(repetitions)
        ]
    )


CASES = [  # the rate fixed: quadratic in meta, whatever the deviation; else a small one
    (True, 1.0, 0.0),
    (True, 1.0, 0.9),
    (False, 1e-3, 0.9),
]


def standard_errors(way, problem, play, central_differences, repetitions):
    """How far the mean is from the exact gradient, entry by entry, and the mean's relative error."""
    segment, inner = segment_of(2, 0, 1, 2), problem.init(META, generator())
    right = vector(central_differences(lambda moved: play(problem, moved, inner, segment), META))
    found = drawn(way, problem, META, segment, repetitions)
    error = found.std(0) / repetitions**0.5
    return (found.mean(0) - right).abs() / error, error.norm() / right.norm()


@pytest.mark.parametrize(("fixed", "deviation", "momentum"), CASES)
def test_the_mean_is_exact_within_its_error(fixed, deviation, momentum, central_differences, play):
    """750 pairs each."""
    problem = Bowl(momentum, fixed)
    away, error = standard_errors(evolution(5, deviation), problem, play, central_differences, 150)
    assert (away < BOUND).all()
    assert error < 0.1


def test_agreement_sees_a_negative_run_on_the_positive_side(monkeypatch, central_differences, play):
    monkeypatch.setattr("metalearn.hypergradient.evolution.add", lambda a, b, s=1.0: add(a, b, abs(s)))
    away, _ = standard_errors(evolution(5, 1.0), Bowl(fixed=True), play, central_differences, 20)
    assert (away > BOUND).any()


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
def test_agreement_sees_a_wrong_quotient(factor, monkeypatch, central_differences, play):
    right = Contrast.gradient
    monkeypatch.setattr(Contrast, "gradient", lambda self, sigma: scale(right(self, sigma), factor))
    away, _ = standard_errors(evolution(5, 1.0), Bowl(fixed=True), play, central_differences, 60)
    assert (away > BOUND).any()


class Surface(Problem):
    """No inner run worth the name: the outer loss is `function` of the meta-parameters alone."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def init(self, meta, rng):
        return Inner({"w": torch.zeros(1, **DOUBLE)}, {})

    def inner_loss(self, meta, params, batch):
        return params["w"].sum()

    def update(self, meta, inner, grads):
        return inner

    def outer_loss(self, meta, params, batch):
        self.seen.append(meta)
        return self.function(meta)


FLAT = {"a": torch.tensor([1.0, -2.0], **DOUBLE), "b": torch.tensor(0.5, **DOUBLE)}
SLOPE = {"a": torch.tensor([0.7, 1.1], **DOUBLE), "b": torch.tensor(-2.0, **DOUBLE)}
AT_ONCE = segment_of(0, 0)


@pytest.mark.parametrize("make", [evolution, pes])
def test_a_pair_sees_a_linear_loss_exactly(make):
    """It says eps (eps * slope) / deviation^2 from opposite metas; even terms of the loss say nothing."""

    def bent(meta):
        away = norm(add(meta, FLAT, -1.0))
        return dot(meta, SLOPE) + 100 + 7 * away**2 + away**4

    found = {}
    for name, function in [("linear", lambda meta: dot(meta, SLOPE)), ("bent", bent)]:
        problem, way = Surface(function), make(1, 0.3)
        carry = way.init(problem, FLAT, generator())
        found[name] = way.estimate(problem, FLAT, carry, AT_ONCE, generator("noise")).grad
        positive, negative = problem.seen[-2:]
        torch.testing.assert_close(add(positive, FLAT, -1.0), add(FLAT, negative, -1.0))
        noise = add(positive, FLAT, -1.0)
        expected = {key: leaf * dot(noise, SLOPE) / 0.3**2 for key, leaf in noise.items()}
        torch.testing.assert_close(found[name], expected)
    torch.testing.assert_close(found["bent"], found["linear"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", [evolution, pes])
def test_a_loss_may_differentiate_for_itself(make):
    """A penalty on a gradient: the square of d (b^3) / d b."""

    def penalty(meta):
        b = meta["b"].detach().requires_grad_()
        return torch.autograd.grad(b**3, b, create_graph=True)[0].square()

    found = {}
    for name, function in [("by autograd", penalty), ("derived", lambda meta: 9 * meta["b"] ** 4)]:
        problem, way = Surface(function), make(2)
        carry = way.init(problem, FLAT, generator())
        estimate = way.estimate(problem, FLAT, carry, AT_ONCE, generator("noise"))
        assert not estimate.loss.requires_grad
        assert not any(leaf.requires_grad for leaf in estimate.grad.values())
        found[name] = estimate.grad
    torch.testing.assert_close(found["by autograd"], found["derived"])


def test_variance_and_spread_are_as_told():
    """(||g||^2 + g_j^2) / N on a linear loss, within standard errors of a variance; spread measures it."""
    problem, g = Surface(lambda meta: dot(meta, SLOPE)), vector(SLOPE)
    for pairs in (1, 8):
        found = drawn(evolution(pairs), problem, FLAT, AT_ONCE, 500)
        expected = (g @ g + g**2) / pairs
        away = (found - g).square()
        error = away.std(0) / 500**0.5
        assert ((away.mean(0) - expected).abs() < BOUND * error).all()
        assert (error < 0.3 * expected).all()
    carry = problem.init(FLAT, generator())
    way, spread = evolution(1000), "hypergradient/spread"
    metrics = way.estimate(problem, FLAT, carry, AT_ONCE, generator()).metrics
    assert metrics[spread] == pytest.approx(math.sqrt(4 / 1000), rel=0.15)
    assert evolution(1).estimate(problem, FLAT, carry, AT_ONCE, generator()).metrics == {}


def test_perturbations_have_the_deviation_and_type_of_the_option():
    meta = {"x": torch.zeros(4000), "y": torch.zeros(3, **DOUBLE)}
    problem, way = Surface(lambda moved: moved["x"].sum()), evolution(1, 0.25)
    way.estimate(problem, meta, problem.init(meta, generator()), AT_ONCE, generator("noise"))
    positive = problem.seen[-2]
    assert positive["x"].std().item() == pytest.approx(0.25, rel=0.05)
    assert positive["x"].mean().abs() < 0.02
    assert [leaf.dtype for leaf in positive.values()] == [torch.float32, torch.float64]


def test_loss_and_carry_are_those_of_the_unperturbed_run(estimator):
    problem, segment = Bowl(), segment_of(4, 0, 3, 4)
    carry = problem.init(META, generator())
    meta = {key: leaf.clone().requires_grad_() for key, leaf in META.items()}
    found = evolution(2, 0.5).estimate(problem, meta, carry, segment, generator())
    exact = estimator("unrolled").estimate(problem, META, carry, segment, generator())
    torch.testing.assert_close(found.carry, exact.carry)
    torch.testing.assert_close(found.loss, exact.loss)
    results = [*found.grad.values(), found.loss, *found.carry.params.values(), *found.carry.slots.values()]
    assert not any(tensor.requires_grad for tensor in results)
    assert all(leaf.grad is None for leaf in meta.values())


@pytest.mark.parametrize("scored", [(), (2,), (-1,)])
def test_outer_batches_outside_the_segment_are_refused(scored):
    problem = Bowl()
    with pytest.raises(ValueError, match="allowed: 0 to 1"):
        evolution(1).estimate(
            problem, META, problem.init(META, generator()), segment_of(1, *scored), generator()
        )


class Shared(Bowl):
    """One loss for both levels, counted."""

    shared_loss = True

    def __init__(self):
        super().__init__()
        self.calls = itertools.count()

    def inner_loss(self, meta, params, batch):
        next(self.calls)
        return super().inner_loss(meta, params, batch)

    def outer_loss(self, meta, params, batch):
        return self.inner_loss(meta, params, batch)


def test_a_shared_loss_is_computed_once():
    problem, segment = Shared(), segment_of(3)
    segment = Segment(segment.inner, dict(enumerate(segment.inner)))
    inner = problem.init(META, generator())
    loss, end = play_values(problem, META, inner, segment)
    assert next(problem.calls) == 3
    problem.shared_loss = False
    again = play_values(problem, META, inner, segment)
    assert next(problem.calls) == 4 + 6
    torch.testing.assert_close((loss, end), again, rtol=0, atol=0)


UPDATES = {
    "sgd": (sgd, sgd_slots, {"momentum": 0.0, "weight_decay": 0.0}),
    "momentum": (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 1e-2}),
    "adam": (adam, adam_slots, {"betas": (0.9, 0.99), "epsilon": 1e-8, "weight_decay": 1e-2}),
}


class Regression(Problem):
    """A network's regression; meta: the log rate, the targets' shift, and what nothing depends on."""

    def __init__(self, module, update):
        self.module = module
        self.step, self.slots, self.settings = UPDATES[update]

    def init(self, meta, rng):
        params = {key: leaf.detach().clone() for key, leaf in self.module.named_parameters()}
        return Inner(params, self.slots(params))

    def inner_loss(self, meta, params, batch):
        with seeded(*batch.key):
            output = functional_call(self.module, params, (batch.x,))
        return mse_loss(output, batch.y + meta.get("shift", 0.0))

    def update(self, meta, inner, grads):
        rate = meta["rate"].exp() if "rate" in meta else 0.05
        return self.step(inner.params, inner.slots, grads, rate, **self.settings)

    def outer_loss(self, meta, params, batch):
        return self.inner_loss({}, params, batch)

    def segment(self, steps):
        def batch(*key):
            x = torch.randn(6, *self.module.shape, generator=generator(*key), **DOUBLE)
            return Batch(x, torch.randn(6, 2, generator=generator(*key, "y"), **DOUBLE), key)

        return Segment([batch("in", t) for t in range(steps)], {steps: batch("out")})


LEARNED = {"rate": torch.tensor(-3.0, **DOUBLE), "shift": torch.tensor([0.5, -0.5], **DOUBLE)}


def slopes(problem, carry, windows):
    """d (loss of the last window) / d (meta of each window), by reverse mode through all of them."""
    metas = [{key: leaf.clone().requires_grad_() for key, leaf in LEARNED.items()} for _ in windows]
    for meta, window in zip(metas, windows, strict=True):
        for batch in window.inner:
            carry = inner_step(problem, meta, carry, batch, create_graph=True)
    loss = problem.outer_loss(metas[-1], carry.params, windows[-1].outer[len(windows[-1].inner)])
    return [gradient(loss, meta, retain_graph=True) for meta in metas]


GRID = [(kind, update) for kind in ("conv", "dropout") for update in UPDATES]


@pytest.mark.parametrize(("kind", "update"), GRID)
@pytest.mark.parametrize(("make", "windows"), [(evolution, 1), (pes, 1), (pes, 2)])
def test_a_pair_is_a_directional_derivative(make, windows, kind, update, regression):
    """xi (sum of eps_t * slope_t) / deviation^2 for small deviations; BatchNorm and dropout."""
    problem, deviation = Regression(regression(kind, update).module, update), 1e-5
    parts, way = problem.segment(2 * windows).split(2), make(1, deviation)
    carry, rng = way.init(problem, LEARNED, generator()), generator("noise")
    for part in parts[:-1]:
        carry = way.estimate(problem, LEARNED, carry, part, rng).carry
    found = way.estimate(problem, LEARNED, carry, parts[-1], rng).grad

    rng = generator("noise")
    noise = [perturbation(LEARNED, deviation, rng) for _ in parts]
    right = slopes(problem, problem.init(LEARNED, generator()), parts)
    along = sum(dot(eps, slope) for eps, slope in zip(noise, right, strict=True)) / deviation**2
    expected = {key: sum(eps[key] for eps in noise) * along for key in LEARNED}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    assert all((slope[key] != 0).all() for slope in right for key in LEARNED)


@pytest.mark.parametrize("make", [evolution, pes])
def test_both_runs_of_a_pair_draw_the_same_masks(make, regression):
    """What nothing depends on gets exactly zero: with masks of their own the runs' losses would differ."""
    idle = {"idle": torch.ones(2, **DOUBLE)}
    problem = Regression(regression("dropout", "sgd").module, "sgd")
    segment, way = problem.segment(2), make(3)

    def estimate():
        carry = way.init(problem, idle, generator())
        return way.estimate(problem, idle, carry, segment, generator("noise")).grad["idle"]

    assert (estimate() == 0).all()
    right, calls = problem.inner_loss, itertools.count()

    def redrawn(meta, params, batch):
        return right(meta, params, batch._replace(key=(*batch.key, next(calls))))

    problem.inner_loss = redrawn
    assert (estimate() != 0).all()


class Watched(Bowl):
    """Looks at what it is given."""

    def update(self, meta, inner, grads):
        assert not any(leaf.requires_grad for tree in (meta, grads, *inner) for leaf in tree.values())
        return super().update(meta, inner, grads)


@pytest.mark.parametrize("make", [evolution, pes])
def test_no_graph_lasts_over_a_step(make):
    meta = {key: leaf.clone().requires_grad_() for key, leaf in META.items()}
    problem, way = Watched(), make(2)
    way.estimate(problem, meta, way.init(problem, meta, generator()), segment_of(3, 1), generator())
