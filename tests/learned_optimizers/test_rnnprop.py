"""RNNprop: what it sees is Adam's and RMSprop's direction, whatever the scale; its steps are bounded."""

import torch
from torch.nn import functional as F

from metalearn.inner_optimizers import adam, adam_slots
from metalearn.learned_optimizers.layout import Layout
from metalearn.rng import generator
from metalearn.tree import count

LAYOUT = Layout({"w": (3, 2), "b": (3,)}, torch.device("cpu"))
THETA = torch.randn(2, 9, generator=generator("theta")).double()
GRADIENTS = torch.randn(5, 2, 9, generator=generator("gradients")).double()


def test_parameter_count(kit):
    """A map of 2 to 20, LSTM layers of 20 on 20 inputs, a map to 1."""
    assert count(kit.build_rule("rnnprop").init(generator(0))) == 60 + 2 * (40 * 80 + 80) + 21


def test_a_step_by_hand(kit):
    """Adam's own steps at rate 1 are the first direction; the second is the gradient over the same root."""
    rule = kit.build_rule("rnnprop", hidden=4, features=3)
    meta = kit.moved(rule)
    params, slots = {"theta": THETA}, adam_slots({"theta": THETA})
    state, theta = rule.network.state(18, THETA), THETA
    for step, grad in enumerate(GRADIENTS, 1):
        after, slots = adam(params, slots, {"theta": grad}, 1.0, (0.95, 0.95), 1e-8, 0.0)
        first, params = params["theta"] - after["theta"], after
        root = (slots["second/theta"] / (1 - 0.95**step)).sqrt() + 1e-8
        seen = torch.stack([first, grad / root], -1).view(18, 2)
        output, state = rule.network.apply(
            meta, F.elu(seen @ meta["input.weight"] + meta["input.bias"]), state
        )
        theta = theta + 0.1 * torch.tanh(output).view(2, 9)
    found = kit.follow(rule, meta, THETA, GRADIENTS, LAYOUT).params["theta"]
    torch.testing.assert_close(found, theta, rtol=1e-9, atol=1e-12)


def test_no_scale_of_the_loss_is_seen(kit):
    rule = kit.build_rule("rnnprop", epsilon=1e-30)
    meta = kit.moved(rule)
    plain, scaled = (
        kit.follow(rule, meta, THETA, factor * GRADIENTS, LAYOUT).params["theta"] for factor in (1.0, 1e6)
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=0)


def test_no_step_is_longer_than_the_scale(kit):
    rule = kit.build_rule("rnnprop")
    meta = {key: 20 * leaf for key, leaf in kit.moved(rule).items()}
    step = kit.follow(rule, meta, THETA, GRADIENTS[:1], LAYOUT).params["theta"] - THETA
    assert 0.09 < step.abs().max() <= 0.1 + 1e-12
