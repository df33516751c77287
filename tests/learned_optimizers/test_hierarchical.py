"""The hierarchy: what goes up and down, and what a coordinate sees."""

import math

import pytest
import torch

from metalearn.learned_optimizers.layout import Layout
from metalearn.problem import Inner
from metalearn.rng import generator

LAYOUT = Layout({"w": (3, 2), "b": (3,)}, torch.device("cpu"))
THETA = torch.randn(2, 9, generator=generator("theta")).double()
GRADIENTS = torch.randn(5, 2, 9, generator=generator("gradients")).double()


def test_no_scale_of_the_loss_is_seen(kit):
    rule = kit.build_rule("hierarchical")
    meta = kit.moved(rule)
    plain, scaled = (
        kit.follow(rule, meta, THETA, factor * GRADIENTS, LAYOUT).params["theta"] for factor in (1.0, 1e6)
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=0)


def test_a_tensors_first_step_is_as_long_as_the_rate(kit):
    rule = kit.build_rule("hierarchical", learning_rate=0.02)
    meta = {key: leaf.double() for key, leaf in rule.init(generator(0)).items()}
    step = kit.follow(rule, meta, THETA, GRADIENTS[:1], LAYOUT).params["theta"] - THETA
    torch.testing.assert_close(LAYOUT.means(step * step).sqrt(), torch.full((2, 2), 0.02).double())


def test_momenta_by_hand(kit):
    """Timescale s keeps decay^(2^-s); the mean squares are of the momenta."""
    rule = kit.build_rule("hierarchical", timescales=3, decay=0.7)
    meta = {key: leaf.double() for key, leaf in rule.init(generator(0)).items()}
    slots = kit.follow(rule, meta, THETA, GRADIENTS, LAYOUT).slots
    for scale in range(3):
        keep, momentum, square = 0.7 ** (2.0**-scale), 0.0, 0.0
        for grad in GRADIENTS[:, 1, 4].tolist():
            momentum = keep * momentum + (1 - keep) * grad
            square = keep * square + (1 - keep) * momentum**2
        assert slots["momenta"][1, 4, scale].item() == pytest.approx(momentum, rel=1e-6)
        assert slots["squares"][1, 4, scale].item() == pytest.approx(square, rel=1e-6)


def test_features_by_hand(kit):
    rule = kit.build_rule("hierarchical", timescales=2)
    momenta, squares = torch.tensor([[[3.0, -8.0]]]), torch.tensor([[[9.0, 4.0]]])
    seen = rule._features(momenta, squares, torch.tensor([[0.5]])).flatten().tolist()
    half = (math.log(9) - math.log(4)) / 2
    assert seen == pytest.approx([1.0, -4.0, half, -half, 0.0])


def test_tensors_learn_of_each_other_by_way_of_the_problem(kit):
    """A gradient of `b` is known to its tensor at once, to the problem too, to `w` two steps later."""
    rule = kit.build_rule("hierarchical")
    meta = {key: leaf.double() for key, leaf in rule.init(generator(0)).items()}
    other = GRADIENTS.clone()
    other[0, :, 6:] *= -1
    runs = [_points(rule, meta, gradients) for gradients in (GRADIENTS, other)]
    apart = (runs[0] - runs[1]).abs()
    assert not apart[:2, :, :6].any()
    assert (apart[0, :, 6:] > 0).all()
    assert (apart[2, :, :6] > 0).all()


def _points(rule, meta, gradients):
    inner, points = Inner({"theta": THETA}, rule.slots(THETA, LAYOUT)), []
    for grad in gradients:
        inner = rule.update(meta, inner, {"theta": grad}, LAYOUT)
        points.append(inner.params["theta"])
    return torch.stack(points)


def test_the_log_rate_moves_about_its_own_average(kit):
    rule = kit.build_rule("hierarchical", learning_rate=0.02, rate_memory=0.75)
    meta = kit.moved(rule)
    slots = kit.follow(rule, meta, THETA, GRADIENTS[:1], LAYOUT).slots
    change = (slots["hidden.coordinate"] @ meta["rate.weight"]).squeeze(-1)
    keep = torch.sigmoid(meta["rate_memory"])
    assert change.abs().min() > 0
    torch.testing.assert_close(slots["rate"], math.log(0.02) + change, rtol=1e-6, atol=0)
    expected = math.log(0.02) + (1 - keep) * change
    torch.testing.assert_close(slots["rate_mean"], expected, rtol=1e-6, atol=0)


def _unit(meta, level, inputs, hidden, above):
    """One gated recurrent unit, of one coordinate, tensor or problem."""
    size, weight, bias = len(hidden), meta[f"{level}.weight"], meta[f"{level}.bias"]
    if above is not None:
        bias = bias + above @ meta[f"{level}.down"]
    gates = torch.sigmoid((torch.cat([inputs, hidden]) @ weight + bias)[: 2 * size])
    reset, renew = gates[:size], gates[size:]
    seen, kept = inputs @ weight[: len(inputs)], (reset * hidden) @ weight[len(inputs) :]
    return (1 - renew) * hidden + renew * torch.tanh((seen + kept + bias)[2 * size :])


def test_three_levels_by_hand(kit):
    """Each unit by itself: coordinates under their tensor, tensors under the problem, means on the way up."""
    rule = kit.build_rule("hierarchical", hidden=4, tensor_hidden=3, global_hidden=2)
    meta, inner = kit.moved(rule), Inner({"theta": THETA}, rule.slots(THETA, LAYOUT))
    coordinates, tensors, whole = (torch.zeros(*rows).double() for rows in ((9, 4), (2, 3), (2,)))
    for grad in GRADIENTS:
        rate, before = inner.slots["rate"], inner.params["theta"]
        inner = rule.update(meta, inner, {"theta": grad}, LAYOUT)
        seen = rule._features(inner.slots["momenta"], inner.slots["squares"], rate)[1]
        rows = [
            _unit(meta, "coordinate", seen[place], coordinates[place], tensors[place // 6])
            for place in range(9)
        ]
        coordinates = torch.stack(rows)
        means = [coordinates[:6].mean(0), coordinates[6:].mean(0)]
        tensors = torch.stack(
            [_unit(meta, "tensor", mean, hidden, whole) for mean, hidden in zip(means, tensors, strict=True)]
        )
        whole = _unit(meta, "global", tensors.mean(0), whole, None)
        for level, expected in (("coordinate", coordinates), ("tensor", tensors), ("global", whole)):
            torch.testing.assert_close(inner.slots[f"hidden.{level}"][1], expected)
        direction = (coordinates @ meta["direction.weight"]).squeeze(1)
        unit = torch.cat([part / part.square().mean().sqrt() for part in (direction[:6], direction[6:])])
        step = before[1] - inner.slots["rate"][1].exp() * unit
        torch.testing.assert_close(inner.params["theta"][1], step)
