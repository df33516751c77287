"""Wide residual networks: counts of the sheet's table, a block by hand, both memory layouts."""

import copy

import pytest
import torch
from torch.nn import functional as F

from metalearn.hypernetworks.static.config import WideResnetOptions
from metalearn.hypernetworks.static.wide_resnet import Block, WideResnet
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec
from metalearn.tree import count

CIFAR = TaskSpec("pictures", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")


def options(depth=40, factor=1, shortcuts="zero_pad", convolution_bias=True):
    return WideResnetOptions("wide_resnet", depth, factor, shortcuts, convolution_bias)


def build(**changes):
    with seeded("network"):
        return WideResnet(options(**changes), CIFAR)


COUNTS = [  # shortcuts, biases, factor, parameters, printed in table 2
    ("zero_pad", False, 1, 561_370, 563_000),
    ("zero_pad", True, 1, 562_730, 563_000),
    ("projection", False, 1, 563_930, 563_000),
    ("zero_pad", False, 2, 2_232_794, 2_236_000),
    ("zero_pad", True, 2, 2_235_498, 2_236_000),
    ("projection", False, 2, 2_243_546, 2_236_000),
]


@pytest.mark.parametrize(("shortcuts", "bias", "factor", "parameters", "printed"), COUNTS)
def test_parameters_of_the_sheet(shortcuts, bias, factor, parameters, printed):
    found = count(build(shortcuts=shortcuts, convolution_bias=bias, factor=factor).parameters())
    assert found == parameters
    assert found == pytest.approx(printed, rel=5e-3)


@pytest.mark.parametrize(("factor", "weights"), [(1, 557_568), (2, 2_225_664)])
def test_kernels_of_the_groups(factor, weights):
    """Those that the paper generates: 36, all of 3x3 (sheet 1.3)."""
    groups = {f"conv{group}": module for group, module in enumerate(build(factor=factor).children(), 1)}
    kernels = [
        layer.weight
        for group in ("conv2", "conv3", "conv4")
        for block in groups[group]
        for layer in (block.first, block.second)
    ]
    assert len(kernels) == 36
    assert {kernel.shape[2:] for kernel in kernels} == {(3, 3)}
    assert count(kernels) == weights


def test_kernels_start_with_the_authors_variance():
    network = build(factor=2)
    for layer in (network.conv1, network.conv2[1].first, network.conv4[5].second):
        deviation = (2 / (9 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.12)
        assert not layer.bias.any()
    assert not network.classifier.bias.any()


def normalised(x, norm):
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    scale, shift = (leaf.view(1, -1, 1, 1) for leaf in (norm.weight, norm.bias))
    return ((x - mean) / (variance + norm.eps).sqrt() * scale + shift).clamp(min=0)


@pytest.mark.parametrize(
    ("shortcuts", "inputs", "outputs", "stride"),
    [("zero_pad", 4, 4, 1), ("zero_pad", 4, 6, 2), ("projection", 4, 6, 2), ("projection", 4, 6, 1)],
)
def test_block_is_the_papers(shortcuts, inputs, outputs, stride):
    """Pre-activation; a shortcut to more channels begins after the first ReLU."""
    with seeded("block"):
        block = Block(options(shortcuts=shortcuts), inputs, outputs, stride).double()
        for leaf in block.parameters():
            torch.nn.init.normal_(leaf)
    x = torch.randn(3, inputs, 7, 7, generator=generator("x"), dtype=torch.float64)
    active = normalised(x, block.first_norm)
    residual = F.conv2d(active, block.first.weight, block.first.bias, stride, padding=1)
    residual = F.conv2d(
        normalised(residual, block.second_norm), block.second.weight, block.second.bias, padding=1
    )
    shortcut = x
    if inputs != outputs and shortcuts == "projection":
        assert block.shortcut is not None
        shortcut = torch.einsum(
            "bihw,oi->bohw", active[:, :, ::stride, ::stride], block.shortcut.weight[..., 0, 0]
        )
    elif inputs != outputs:
        places = active[:, :, ::stride, ::stride]
        shortcut = torch.cat([places, torch.zeros_like(places[:, : outputs - inputs])], dim=1)
    torch.testing.assert_close(block(x), residual + shortcut)


def test_resolution_is_halved_twice():
    network, seen = build(depth=10), []
    for group in (network.conv2, network.conv3, network.conv4):
        group.register_forward_hook(lambda _module, _x, output: seen.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 10)
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


@pytest.mark.parametrize("shortcuts", ["zero_pad", "projection"])
def test_channels_last_computes_the_same(shortcuts):
    plain = build(depth=10, shortcuts=shortcuts).double()
    fused = copy.deepcopy(plain)
    fused.fused = True
    x = torch.randn(4, 3, 8, 8, generator=generator("x"), dtype=torch.float64)
    y = torch.arange(4)
    found = []
    for network in (plain, fused):
        loss = F.cross_entropy(network(x).logits, y)
        found.append([loss, *torch.autograd.grad(loss, list(network.parameters()))])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("depth", [11, 12, 38])
def test_refuses_depths_without_whole_blocks(depth):
    with pytest.raises(UserError, match=r"6 n \+ 4"):
        build(depth=depth)


def test_refuses_tasks_without_images():
    with pytest.raises(UserError, match="images"):
        WideResnet(options(), TaskSpec("text", "language_model", (), 50, {}, "bits", "", "", "", ""))
