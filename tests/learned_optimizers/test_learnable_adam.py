"""Learnable Adam: it begins as Adam, and its meta-parameters are Adam's hyper-parameters."""

import math

import pytest
import torch

from metalearn.inner_optimizers import adam, adam_slots
from metalearn.learned_optimizers.layout import Layout
from metalearn.registry import UserError
from metalearn.rng import generator

LAYOUT = Layout({"w": (3, 2), "b": (3,), "k": (1, 1, 2, 2)}, torch.device("cpu"))
THETA = torch.randn(2, 13, generator=generator("theta"))
GRADIENTS = torch.randn(6, 2, 13, generator=generator("gradients"))


def _adam(theta, gradients, rate, betas, epsilon):
    """The engine's, with one learning rate or one a step."""
    params = {"theta": theta}
    slots = adam_slots(params)
    for step, grad in enumerate(gradients):
        current = rate[step] if isinstance(rate, list) else rate
        params, slots = adam(params, slots, {"theta": grad}, current, betas, epsilon, 0.0)
    return params["theta"]


def _meta(rule, dtype=torch.float64, **values):
    return {key: leaf.to(dtype) + values.get(key, 0.0) for key, leaf in rule.init(generator(0)).items()}


@pytest.mark.parametrize("groups", ["single", "size"])
@pytest.mark.parametrize("schedule", ["none", "exponential"])
@pytest.mark.parametrize("betas", [[0.9, 0.999], [0.3, 0.7]])
def test_begins_as_adam_bit_for_bit(kit, groups, schedule, betas):
    rule = kit.build_rule("adam", groups=groups, schedule=schedule, betas=betas, learning_rate=0.03)
    found = kit.follow(rule, _meta(rule, torch.float32), THETA, GRADIENTS, LAYOUT).params["theta"]
    assert torch.equal(found, _adam(THETA, GRADIENTS, 0.03, tuple(betas), 1e-8))


def test_moved_meta_parameters_are_another_adam(kit):
    """Rate and epsilon in the logarithm, decays in the log odds."""
    rule = kit.build_rule("adam", learning_rate=0.03, betas=[0.9, 0.99], epsilon=1e-3)
    meta = _meta(rule, rate=math.log(2), first=math.log(1 / 9), second=math.log(4 / 99), epsilon=math.log(5))
    found = kit.follow(rule, meta, THETA.double(), GRADIENTS.double(), LAYOUT).params["theta"]
    expected = _adam(THETA.double(), GRADIENTS.double(), 0.06, (0.5, 0.8), 5e-3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_each_size_of_tensor_has_its_own_numbers(kit):
    rule = kit.build_rule("adam", groups="size", learning_rate=0.03)
    meta = _meta(rule, rate=torch.tensor([0.0, 1.0, 2.0]).double())
    theta, gradients = THETA.double(), GRADIENTS.double()
    found = LAYOUT.unflatten(kit.follow(rule, meta, theta, gradients, LAYOUT).params["theta"])
    for name, power in (("b", 0), ("w", 1), ("k", 2)):
        expected = LAYOUT.unflatten(_adam(theta, gradients, 0.03 * math.e**power, (0.9, 0.999), 1e-8))
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-13)


def test_the_rate_falls_by_what_is_learned(kit):
    rule = kit.build_rule("adam", learning_rate=0.03, schedule="exponential", schedule_steps=4)
    meta = _meta(rule, fall=math.log(3))
    found = kit.follow(rule, meta, THETA.double(), GRADIENTS.double(), LAYOUT).params["theta"]
    rates = [0.03 * 3 ** (-step / 4) for step in range(6)]
    expected = _adam(THETA.double(), GRADIENTS.double(), rates, (0.9, 0.999), 1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["adam", "rnnprop"])
def test_two_decays_are_wanted(kit, name):
    with pytest.raises(UserError, match=r"rule\.betas: got \[0\.9\], must be two numbers"):
        kit.build_rule(name, betas=[0.9])
