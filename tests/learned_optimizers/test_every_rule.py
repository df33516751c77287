"""What holds of every update rule of the group `rule`, at small sizes."""

import math

import pytest
import torch
from torch.func import vmap

import metalearn.learned_optimizers  # noqa: F401
from metalearn import registry
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.run import Run
from metalearn.problem import inner_step, loss_and_gradient
from metalearn.rng import generator
from metalearn.tree import add, detach, dot

SMALL = {  # so small, and with such large updates, that differences are seen
    "lstm": {"hidden": 3, "output_scale": 0.5},
    "rnnprop": {"hidden": 3, "features": 3, "output_scale": 0.5, "betas": [0.5, 0.9]},
    "hierarchical": {
        "hidden": 3, "tensor_hidden": 2, "global_hidden": 2, "timescales": 2, "learning_rate": 0.3,
    },
    "mlp": {
        "hidden": [3], "decays": [0.5, 0.9], "timescales": [1, 10],
        "step_multiplier": 0.3, "magnitude_multiplier": 0.5,
    },
    "adam": {"learning_rate": 0.1, "betas": [0.5, 0.9], "epsilon": 0.01},
    "ntm_bfgs": {"hidden": 3, "averaging": 1, "writes": 2, "output_scale": 0.5},
}  # fmt: skip
VARIANTS = [
    ("lstm", {"averaging": 1}),
    ("lstm", {"groups": "kind"}),
    ("lstm", {"groups": "code", "averaging": 1}),
    ("mlp", {"factored": True}),
    ("adam", {"groups": "size", "schedule": "exponential"}),
    ("ntm_bfgs", {"memory": "pairs", "history": 2, "preprocess": "none"}),
]
CASES = [(name, {}) for name in registry.names("rule")] + VARIANTS
IDS = ["-".join([name, *(f"{key}={value}" for key, value in changes.items())]) for name, changes in CASES]
LAYOUT = Layout({"kernel": (2, 1, 2, 2), "bias": (2,), "matrix": (3, 2), "scale": (1,)}, torch.device("cpu"))
STEP = 1e-5  # of differences: small, so that no unit of a perceptron is switched by it
STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # fourth order

every_rule = pytest.mark.parametrize(("name", "changes"), CASES, ids=IDS)


def _small(kit, name, changes):
    return kit.build_rule(name, **(SMALL.get(name, {}) | changes))


def _gradients(problems, steps, dtype=torch.float64):
    drawn = torch.randn(steps, problems, LAYOUT.coordinates, generator=generator("gradients"))
    return drawn.to(dtype)


@every_rule
def test_meta_gradient(kit, float64, name, changes):  # noqa: ARG001
    """Along a random direction, against central differences of the whole unroll of two problems."""
    _compare(kit, name, changes, True, lambda meta: [_direction(meta, meta)])


@pytest.mark.slow
@pytest.mark.parametrize("second_derivatives", [False, True])
@every_rule
def test_meta_gradient_of_each_leaf(kit, float64, name, changes, second_derivatives):  # noqa: ARG001
    _compare(kit, name, changes, second_derivatives, lambda meta: [_direction(meta, [key]) for key in meta])


def _compare(kit, name, changes, second_derivatives, directions):
    rule = _small(kit, name, changes)
    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Blobs()))
    run, meta = Run(rule, optimizee, "train", (0, 1), second_derivatives), kit.moved(rule)
    batches, estimator = run.batches(0, 4), Unrolled(UnrolledOptions("unrolled", False))
    segment = Segment(batches[:3], dict(enumerate(batches)))
    carry = estimator.init(run, meta, generator(0))
    estimate = estimator.estimate(run, meta, carry, segment, generator(0))
    replayed = None if second_derivatives else _record(run, meta, carry, segment)
    total = _total(run, carry, segment, replayed)
    torch.testing.assert_close(estimate.loss, total(meta))
    for direction in directions(meta):
        differences = [weight * total(add(meta, direction, side * STEP)) for side, weight in STENCIL.items()]
        expected = torch.stack(differences).sum() / STEP
        torch.testing.assert_close(dot(estimate.grad, direction), expected, rtol=1e-5, atol=1e-9)
    assert dot(estimate.grad, estimate.grad) > 1e-8


def _direction(meta, keys):
    rng = generator("direction")
    drawn = {key: torch.randn(leaf.shape, generator=rng).double() for key, leaf in meta.items()}
    return {key: leaf * (key in keys) for key, leaf in drawn.items()}


def _record(run, meta, inner, segment):
    recorded = []
    for batch in segment.inner:
        _, grads = loss_and_gradient(run, meta, inner.params, batch)
        recorded.append(grads)
        inner = run.update(meta, inner, grads)
    return recorded


def _total(run, start, segment, replayed):
    def total(meta):
        inner, losses = start, []
        for step, batch in enumerate(segment.inner):
            losses.append(run.outer_loss(meta, inner.params, segment.outer[step]).detach())
            if replayed is None:
                inner = inner_step(run, meta, inner, batch).detach()
            else:
                inner = run.update(meta, inner, replayed[step])
        return torch.stack([*losses, run.outer_loss(meta, inner.params, segment.outer[len(losses)])]).sum()

    return total


@every_rule
def test_problems_side_by_side_equal_problems_alone(kit, name, changes):
    """Their gradients' scales differ by powers of ten: what leaked from one to another would show."""
    rule = _small(kit, name, changes)
    meta = kit.moved(rule)
    theta = torch.randn(3, LAYOUT.coordinates, generator=generator("theta")).double()
    gradients = _gradients(3, 4) * torch.tensor([[1e-2], [1.0], [1e2]])
    together = kit.follow(rule, meta, theta, gradients, LAYOUT)
    assert all(len(leaf) == 3 for leaf in together.slots.values())
    for problem in range(3):
        place = slice(problem, problem + 1)
        alone = kit.follow(rule, meta, theta[place], gradients[:, place], LAYOUT)
        torch.testing.assert_close(together.params["theta"][place], alone.params["theta"], rtol=1e-11, atol=0)
        for key, leaf in alone.slots.items():
            torch.testing.assert_close(together.slots[key][place], leaf, rtol=1e-10, atol=1e-15)


@every_rule
def test_particles_at_once_equal_particles_one_by_one(kit, name, changes):
    """Under vmap, each with meta-parameters of its own."""
    rule = _small(kit, name, changes)
    metas = [{key: scale * leaf for key, leaf in kit.moved(rule).items()} for scale in (1.0, 1.1)]
    theta = torch.randn(2, 3, LAYOUT.coordinates, generator=generator("theta")).double()
    gradients = _gradients(3, 2)

    def follow(meta, theta):
        return kit.follow(rule, meta, theta, gradients, LAYOUT).params["theta"]

    together = vmap(follow)({key: torch.stack([meta[key] for meta in metas]) for key in metas[0]}, theta)
    for particle, meta in enumerate(metas):
        torch.testing.assert_close(together[particle], follow(meta, theta[particle]), rtol=1e-11, atol=1e-14)


@every_rule
def test_permuting_a_tensors_coordinates_permutes_its_steps(kit, name, changes):
    """For factored second moments, of which it does not hold: permuting the rows."""
    rule = _small(kit, name, changes)
    meta, theta = kit.moved(rule), torch.randn(2, LAYOUT.coordinates, generator=generator("theta")).double()
    within = [2, 3, 0, 1, 4, 5] if changes.get("factored") else [3, 5, 0, 2, 4, 1]
    order = torch.arange(LAYOUT.coordinates)
    order[10:16] = 10 + torch.tensor(within)
    gradients = _gradients(2, 4)
    straight = kit.follow(rule, meta, theta, gradients, LAYOUT).params["theta"]
    permuted = kit.follow(rule, meta, theta[:, order], gradients[..., order], LAYOUT).params["theta"]
    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-11, atol=1e-14)
    assert (straight - theta).abs().median() > 1e-3


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e8])
@every_rule
def test_stays_finite(kit, name, changes, scale):
    """In float32, with its meta-gradient and the derivative by the gradients: zero, tiny, huge gradients."""
    rule = _small(kit, name, changes)
    meta = {key: leaf.requires_grad_() for key, leaf in kit.moved(rule, torch.float32).items()}
    theta = torch.randn(2, LAYOUT.coordinates, generator=generator("theta"))
    gradients = (scale * _gradients(2, 4, torch.float32)).requires_grad_()
    after = kit.follow(rule, meta, theta, gradients, LAYOUT)
    leaves = [*after.params.values(), *after.slots.values()]
    assert all(leaf.isfinite().all() for leaf in leaves)
    slopes = torch.autograd.grad(
        after.params["theta"].sum(), [*meta.values(), gradients], allow_unused=True, materialize_grads=True
    )
    assert all(slope.isfinite().all() for slope in slopes)


@every_rule
def test_one_dead_tensor_among_others_stays_finite(kit, name, changes):
    """A tensor whose gradients are all zero, as below a unit that is off."""
    rule = _small(kit, name, changes)
    meta = {key: leaf.requires_grad_() for key, leaf in kit.moved(rule, torch.float32).items()}
    gradients = _gradients(2, 3, torch.float32)
    gradients[..., 10:16] = 0
    gradients.requires_grad_()
    after = kit.follow(rule, meta, torch.zeros(2, LAYOUT.coordinates), gradients, LAYOUT)
    slopes = torch.autograd.grad(
        after.params["theta"].sum(), [*meta.values(), gradients], allow_unused=True, materialize_grads=True
    )
    assert all(leaf.isfinite().all() for leaf in [*after.params.values(), *slopes])


@every_rule
def test_types_stay_in_half_precision_products(kit, name, changes):
    """Under autocast the memory and the parameters keep the type that they began with."""
    rule = _small(kit, name, changes)
    meta, theta = kit.moved(rule, torch.float32), torch.zeros(2, LAYOUT.coordinates)
    before = {key: (leaf.dtype, leaf.shape) for key, leaf in rule.slots(theta, LAYOUT).items()}
    with torch.autocast("cpu", torch.bfloat16):
        after = kit.follow(rule, meta, theta, _gradients(2, 2, torch.float32), LAYOUT)
    assert {key: (leaf.dtype, leaf.shape) for key, leaf in after.slots.items()} == before
    assert after.params["theta"].dtype == torch.float32
    exact = kit.follow(rule, meta, theta, _gradients(2, 2, torch.float32), LAYOUT).params["theta"]
    torch.testing.assert_close(after.params["theta"], exact, rtol=0, atol=0.1 * exact.abs().max().item())


@pytest.mark.slow
@every_rule
def test_learns_to_descend_quadratics(kit, name, changes):
    """At the sizes of conf/: 60 steps of Adam on the rule at least halve the loss at the end of fresh runs.

    The perceptron's steps of 0.001 are for longer runs than 20 steps.
    """
    rule = kit.build_rule(name, **changes | ({"step_multiplier": 0.1} if name == "mlp" else {}))
    optimizee = kit.optimizee(kit.learned(horizon=20), kit.context(kit.Quadratics(16)))
    meta = {key: leaf.requires_grad_() for key, leaf in rule.init(generator("weights")).items()}
    optimizer, estimator = torch.optim.Adam(meta.values(), 0.03), Unrolled(UnrolledOptions("unrolled", False))
    before = _final(rule, detach(meta), optimizee)
    for index in range(60):
        run = Run(rule, optimizee, "train", (index,), second_derivatives=False)
        batches, carry = run.batches(0, 21), estimator.init(run, meta, generator(index))
        segment = Segment(batches[:20], dict(enumerate(batches)))
        estimate = estimator.estimate(run, meta, carry, segment, generator(index))
        length = math.sqrt(dot(estimate.grad, estimate.grad))
        for key, leaf in meta.items():
            leaf.grad = estimate.grad[key] / max(length, 1.0)
        optimizer.step()
    after = _final(rule, detach(meta), optimizee)
    assert after < 0.5 * before


def _final(rule, meta, optimizee):
    run = Run(rule, optimizee, "valid", (0, 1), second_derivatives=False)
    inner = run.init(meta, generator(0))
    batch = run.batches(0, 1)[0]
    for _ in range(20):
        inner = inner_step(run, meta, inner, batch).detach()
    return run.outer_loss(meta, inner.params, batch).item()
