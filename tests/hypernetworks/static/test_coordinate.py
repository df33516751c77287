"""The appendix's coordinate network: 801 parameters for 200,704 weights."""

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.hypernetworks.static.coordinate import Surface, grid
from metalearn.hypernetworks.static.hypernetize import chosen, hypernetize
from metalearn.registry import UserError
from metalearn.tree import count


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def test_801_parameters_make_the_first_matrix(generator_options):
    hyper = hypernetize(_net(), generator_options("coordinate"), chosen(["linears"], ["3.*"]))
    assert count(hyper.generator.parameters()) == 801
    (weight,) = hyper.weights().values()
    assert weight.shape == (256, 784)
    assert weight.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert weight.var().item() == pytest.approx(2 / 784, rel=1e-3)  # hyperfan_in
    hyper(torch.rand(2, 1, 28, 28)).square().mean().backward()
    assert all(parameter.grad.any() for parameter in hyper.generator.parameters())


def test_weights_are_a_function_of_the_two_places(generator_options):
    net = nn.Linear(12, 4).double()
    hyper = hypernetize(net, generator_options("coordinate", hidden=[5, 3]), chosen(["linears"], []))
    for parameter in hyper.generator.parameters():
        nn.init.normal_(parameter)
    (surface,) = hyper.generator.nets  # type: ignore[attr-defined]
    assert isinstance(surface, Surface)
    expected = np.zeros((4, 12))
    for unit in range(4):
        for pixel in range(12):
            places = (2 * (pixel // 4) / 2 - 1, 2 * (pixel % 4) / 3 - 1)  # 3 x 4
            x = np.array([*places, 2 * (unit // 2) - 1, 2 * (unit % 2) - 1])
            for number, layer in enumerate(surface.layers):
                x = layer.weight.detach().numpy() @ (np.maximum(x, 0) if number else x)
                x = x + layer.bias.detach().numpy()
            expected[unit, pixel] = x.item()
    np.testing.assert_allclose(hyper.weights()["weight"].detach().numpy(), expected, rtol=1e-6, atol=1e-9)


def test_units_lie_on_the_grid_nearest_to_a_square():
    assert grid(784).unique(dim=0).shape == (784, 2)
    assert [len(grid(784)[:, axis].unique()) for axis in (0, 1)] == [28, 28]
    assert grid(7)[:, 0].eq(0).all()


def test_what_has_no_places_is_refused(generator_options):
    with pytest.raises(UserError, match=r"weights of linear maps alone: set network.generates=\[linears\]"):
        hypernetize(nn.Conv2d(1, 2, 3), generator_options("coordinate"), chosen(["convolutions"], []))
    with pytest.raises(UserError, match="conditions: got 2"):
        hypernetize(_net(), generator_options("coordinate", 2), chosen(["linears"], []))
