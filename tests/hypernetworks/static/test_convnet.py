"""The two-convolution network of MNIST: sizes, start, forward pass by hand."""

import pytest
import torch
from torch.nn import functional as F

from metalearn.hypernetworks.static.config import MnistConvnetOptions
from metalearn.hypernetworks.static.convnet import MnistConvnet
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec
from metalearn.tree import count


def spec(*shape, kind="classification"):
    return TaskSpec("pictures", kind, shape, 10, {}, "error", "", "", "", "")


def build(*shape, **changes):
    options = {"name": "mnist_convnet", "channels": 16, "kernel": 7, "deviation": 0.01, "bias": 0.0}
    with seeded("network"):
        return MnistConvnet(MnistConvnetOptions(**(options | changes)), spec(*shape))


def test_parameters_of_the_paper():
    """Sheet 1.2: 21,210 in all, 12,544 of them the second kernel."""
    network = build(1, 28, 28)
    assert count(network.parameters()) == 21_210
    assert network.second.weight.numel() == 12_544


def test_start_is_a_normal_distribution_cut_at_two_deviations():
    network = build(1, 28, 28, bias=0.25)
    for layer in (network.first, network.second, network.classifier):
        assert layer.weight.abs().max() <= 0.02
        assert (layer.bias == 0.25).all()
    assert network.second.weight.std().item() == pytest.approx(0.0088, rel=0.02)  # 0.88 of what is cut off


@pytest.mark.parametrize(("side", "fused"), [(8, False), (11, True), (28, True)])
def test_forward(side, fused):
    """Pixel by pixel for the pools, torch's own convolution for the rest."""
    network = build(2, side, side, deviation=0.3, bias=0.1, kernel=5).double()
    network.fused = fused
    x = torch.randn(3, 2, side, side, generator=generator("x"), dtype=torch.float64)
    maps = x
    for layer in (network.first, network.second):
        maps = F.conv2d(F.pad(maps, (2,) * 4), layer.weight, layer.bias).clamp(min=0)
        half = maps.shape[-1] // 2
        windows = maps[..., : 2 * half, : 2 * half].unflatten(-1, (half, 2)).unflatten(-3, (half, 2))
        maps = windows.amax(dim=(-3, -1))
    expected = maps.reshape(3, -1) @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x).logits, expected)


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [((2,), {}, "images"), ((1, 3, 8), {}, "at least 4x4"), ((1, 8, 8), {"kernel": 4}, "odd")],
)
def test_refusals(shape, changes, words):
    with pytest.raises(UserError, match=words):
        build(*shape, **changes)
