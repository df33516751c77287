"""The kernel of the perceptron rule against the plain operations."""

import dataclasses

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.kernels import build
from metalearn.learned_optimizers.fused.perceptron import SOURCE, fusable
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.mlp import MlpRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.rng import generator

pytestmark = pytest.mark.skipif(build(torch.float64, SOURCE).library is None, reason="no C compiler")
SHAPES = {"weight": (70, 90), "bias": (10,), "one": (1,), "none": (0,), "row": (2, 33)}
CHANGES = [{}, {"hidden": [7], "decays": [0.5]}, {"hidden": [], "decays": []}, {"hidden": [5, 3, 9]}]


@pytest.fixture(scope="module")
def options():
    return compose(["method=learned_optimizer", "hypergradient=unrolled", "rule=mlp", "machine=cpu"])


def steps(rule, dtype, count=4):
    """A few steps of two problems; one tensor's gradients are all 0, scales are very different."""
    layout = Layout(SHAPES, torch.device("cpu"))
    rng = generator("perceptron")
    meta = {name: leaf.to(dtype) + 0.1 for name, leaf in rule.init(rng).items()}
    theta = torch.randn(2, layout.coordinates, generator=rng).to(dtype)
    inner, points = Inner({"theta": theta}, rule.slots(theta, layout)), []
    for step in range(count):
        grad = torch.randn(theta.shape, generator=rng).to(dtype) * 10.0**-step
        grad[:, 6300:6310] = 0
        with torch.no_grad():
            inner = rule.update(meta, inner, {"theta": grad}, layout)
        points.append(inner.params["theta"] - theta)
    return points, inner.slots


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("changes", CHANGES)
def test_equals_the_plain_operations(options, changes, dtype, exact):
    found = []
    for fused in (True, False):
        rule = MlpRule(dataclasses.replace(options.rule, **changes), Machine(options.machine))
        assert rule.fused
        rule.fused = fused
        found.append(steps(rule, dtype))
    points, expected = found[0][0], found[1][0]
    for one, other in zip(points, expected, strict=True):
        largest = other.abs().max().item()
        assert largest > 0
        torch.testing.assert_close(one, other, rtol=0, atol=max(exact * largest, torch.finfo(dtype).eps * 8))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=exact, atol=exact)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_shows_in_its_tensor_alone(options, wrong):
    """No size of a feature can be told of its tensor; with the kernel and without."""
    layout, found = Layout({"a": (70, 3), "b": (5,)}, torch.device("cpu")), []
    for fused in (True, False):
        rule = MlpRule(options.rule, Machine(options.machine))
        rule.fused, meta = fused, rule.init(generator("wrong"))
        theta, grad = torch.randn(2, 2, layout.coordinates, generator=generator("grads")).unbind(0)
        grad[1, 100] = wrong
        inner = Inner({"theta": theta}, rule.slots(theta, layout))
        with torch.no_grad():
            found.append(rule.update(meta, inner, {"theta": grad}, layout).params["theta"])
    for after in found:
        assert after[0].isfinite().all()
        assert after[1, 210:].isfinite().all()
        assert not after[1, 100].isfinite()
        assert torch.isnan(torch.tensor(wrong)) <= after[1, :210].isnan().all()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_bits_do_not_depend_on_threads(options):
    rule, threads, found = MlpRule(options.rule, Machine(options.machine)), torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(steps(rule, torch.float32)[0])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_it_leaves_gradients_to_autograd(options):
    rule = MlpRule(options.rule, Machine(options.machine))
    layout = Layout(SHAPES, torch.device("cpu"))
    meta = {name: leaf.requires_grad_() for name, leaf in rule.init(generator("meta")).items()}
    theta = torch.ones(1, layout.coordinates)
    slots = rule.slots(theta, layout)
    assert not fusable(theta, *meta.values())
    with torch.no_grad():
        assert fusable(theta, *meta.values())
    after = rule.update(meta, Inner({"theta": theta}, slots), {"theta": torch.ones_like(theta)}, layout)
    assert after.params["theta"].requires_grad
