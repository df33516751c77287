"""The coordinatewise LSTM: counts, parity with torch's cell, start, equivariance."""

import math

import pytest
import torch
from torch import nn

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.lstm import CoordinateLstm, LstmRule
from metalearn.problem import Inner
from metalearn.rng import generator
from metalearn.tree import count

NETWORK = CoordinateLstm(inputs=2, layers=2, hidden=20, forget_bias=1.0, initial="truncated_normal")


@pytest.mark.parametrize(("inputs", "expected"), [(1, 5061), (2, 5141)])
def test_parameter_count(inputs, expected):
    assert count(NETWORK._replace(inputs=inputs).init(generator(0))) == expected


def _torch_cell(weight, bias, forget_bias, inputs, hidden):
    """torch's LSTMCell with our weights: its gates lie in the order input, forget, candidate, output."""
    cell = nn.LSTMCell(inputs, hidden).double()
    order = torch.cat([torch.arange(hidden) + gate * hidden for gate in (0, 1, 3, 2)])
    shift = torch.zeros(4, hidden, dtype=torch.float64)
    shift[1] = forget_bias
    with torch.no_grad():
        cell.weight_ih.copy_(weight[:inputs, order].T)
        cell.weight_hh.copy_(weight[inputs:, order].T)
        cell.bias_ih.copy_(bias[order])
        cell.bias_hh.copy_(shift.flatten())
    return cell


@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_equals_torchs_cells(forget_bias):
    network = NETWORK._replace(forget_bias=forget_bias)
    meta = {key: leaf.double() for key, leaf in network.init(generator("weights")).items()}
    for layer in range(2):
        meta[f"lstm.{layer}.bias"] = torch.randn(80, dtype=torch.float64, generator=generator(layer))
    cells = [
        _torch_cell(meta[f"lstm.{layer}.weight"], meta[f"lstm.{layer}.bias"], forget_bias, inputs, 20)
        for layer, inputs in enumerate((2, 20))
    ]
    state, theirs = network.state(7, meta["linear.bias"]), [None, None]
    for step in range(5):
        features = torch.randn(7, 2, dtype=torch.float64, generator=generator("features", step))
        output, state = network.apply(meta, features, state)
        for layer, cell in enumerate(cells):
            theirs[layer] = cell(features, theirs[layer])
            features = theirs[layer][0]
            torch.testing.assert_close(state[f"hidden.{layer}"], theirs[layer][0])
            torch.testing.assert_close(state[f"cell.{layer}"], theirs[layer][1])
        expected = features @ meta["linear.weight"] + meta["linear.bias"]
        torch.testing.assert_close(output, expected.squeeze(1))


def test_truncated_normal_start():
    """Deviation 1/sqrt(inputs) before truncation at two deviations, which leaves 0.8796 of it."""
    meta = NETWORK._replace(hidden=200).init(generator(0))
    weight = meta["lstm.1.weight"]
    assert weight.abs().max() <= 2 / math.sqrt(400)
    assert weight.std().item() == pytest.approx(0.8796 / math.sqrt(400), rel=0.01)
    assert not any(meta[key].any() for key in meta if key.endswith("bias"))


def test_uniform_start():
    weight = NETWORK._replace(hidden=200, initial="uniform").init(generator(0))["lstm.0.weight"]
    assert weight.abs().max() <= 1 / math.sqrt(200)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 200), rel=0.01)


@pytest.mark.parametrize("preprocess", ["none", "log_sign"])
def test_permuting_coordinates_permutes_the_trajectory(kit, float64, preprocess):  # noqa: ARG001
    rule = _rule(kit, preprocess=preprocess)
    meta = {key: leaf.double() for key, leaf in rule.network.init(generator(1)).items()}
    order = torch.randperm(11, generator=generator(2))
    curvature, theta = torch.rand(11, generator=generator(3)), torch.randn(11, generator=generator(4))

    straight = _trajectory(rule, meta, theta, curvature)
    permuted = _trajectory(rule, meta, theta[order], curvature[order])

    torch.testing.assert_close(permuted, straight[:, order], rtol=1e-12, atol=0)
    assert (straight[-1] - straight[0]).abs().median() > 1e-3


def test_output_scale_scales_the_first_update(kit, float64):  # noqa: ARG001
    theta, updates = torch.zeros(1, 5), []
    layout = Layout({"theta": (5,)}, theta.device)
    grads = {"theta": torch.randn(1, 5, generator=generator(0))}
    for scale in (0.1, 1.0):
        rule = _rule(kit, output_scale=scale)
        meta = {key: leaf.double() for key, leaf in rule.network.init(generator(1)).items()}
        inner = Inner({"theta": theta}, rule.slots(theta, layout))
        updates.append(rule.update(meta, inner, grads, layout).params["theta"])
    torch.testing.assert_close(10 * updates[0], updates[1])


def _rule(kit, **changes) -> LstmRule:
    return LstmRule(kit.rule(**changes), kit.context(kit.Blobs()).machine)


def _trajectory(rule, meta, theta, curvature):
    layout = Layout({"theta": theta.shape}, theta.device)
    inner, points = Inner({"theta": theta[None]}, rule.slots(theta[None], layout)), [theta]
    for _ in range(8):
        inner = rule.update(meta, inner, {"theta": curvature * inner.params["theta"]}, layout)
        points.append(inner.params["theta"][0])
    return torch.stack(points)
