"""The paper's networks with generated kernels, as recipes build them: counts of the sheet, start, sums."""

import copy
from functools import cache

import pytest
import torch

from metalearn import cli, registry
from metalearn.compose import compose
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec
from metalearn.tree import count

cli.register_all()
MNIST = TaskSpec("digits", "classification", (1, 28, 28), 10, {}, "error", "", "", "", "")
SMALL = TaskSpec("digits", "classification", (1, 8, 8), 10, {}, "error", "", "", "", "")
CIFAR = TaskSpec("pictures", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")


@cache
def _options(recipe):
    return compose([f"recipe=hypernetworks/{recipe}"]).network


def options(recipe, **changes):
    """Of the recipe's network; `changes` of the network whose kernels it makes."""
    found = copy.deepcopy(_options(recipe))
    for name, value in changes.items():
        setattr(found.options, name, value)
    return found


def build(chosen, spec):
    with seeded("network"):
        return registry.build("network", chosen, spec=spec)


def embeddings(network):
    (family,) = network.hypernetwork.generator.families.values()
    return family.embeddings


def test_mnist():
    """Sheet 1.2: 12,910 in all, 4,244 for the second kernel."""
    network = build(options("mnist_hyper_convnet"), MNIST)
    assert count(network.parameters()) == 12_910
    assert count(network.hypernetwork.generator.parameters()) == 4_244
    assert {name: kernel.shape for name, kernel in network.hypernetwork.weights().items()} == {
        "second.weight": (16, 16, 7, 7)
    }


def test_mnist_by_coordinates():
    """Appendix A.1: 801 parameters for 784 x 256 weights."""
    network = build(options("mnist_coordinate"), MNIST)
    assert count(network.hypernetwork.generator.parameters()) == 801
    assert count(network.hypernetwork.weights().values()) == 784 * 256


COUNTS = [  # recipe, shortcuts, biases, parameters, printed in table 2
    ("cifar10_hyper_wrn40_1", "zero_pad", False, 95_210, None),  # 1.8 % off what is printed
    ("cifar10_hyper_wrn40_1", "zero_pad", True, 96_570, 97_000),
    ("cifar10_hyper_wrn40_1", "projection", False, 97_770, None),
    ("cifar10_hyper_wrn40_2", "zero_pad", False, 144_874, None),
    ("cifar10_hyper_wrn40_2", "zero_pad", True, 147_578, 148_000),
    ("cifar10_hyper_wrn40_2", "projection", False, 155_626, None),
]


@pytest.mark.parametrize(("recipe", "shortcuts", "bias", "parameters", "printed"), COUNTS)
def test_wide_resnets(recipe, shortcuts, bias, parameters, printed):
    """The sheet's table 1.3, all variants; those that recipes choose are within 0.5 % of the paper's."""
    found = count(build(options(recipe, shortcuts=shortcuts, convolution_bias=bias), CIFAR).parameters())
    assert found == parameters
    if printed is not None:
        assert found == pytest.approx(printed, rel=5e-3)


@pytest.mark.parametrize(
    ("recipe", "blocks", "weights"),
    [("cifar10_hyper_wrn40_1", 242, 557_568), ("cifar10_hyper_wrn40_2", 966, 2_225_664)],
)
def test_generators_of_wide_resnets(recipe, blocks, weights):
    network = build(options(recipe), CIFAR)
    made = network.hypernetwork.weights()
    assert (len(made), count(made.values())) == (36, weights)
    assert embeddings(network).numel() == blocks * 64
    shared = count(network.hypernetwork.generator.parameters()) - blocks * 64
    assert shared == 75_920


def test_first_kernels_have_the_variance_of_he_for_a_block():
    """2 / (16 x 9) for all of them, whatever their width (sheet 8.10)."""
    made = build(options("cifar10_hyper_wrn40_1"), CIFAR).hypernetwork.weights()
    for name in ("conv2.0.first.weight", "conv3.3.second.weight", "conv4.5.first.weight"):
        assert made[name].var().item() == pytest.approx(2 / 144, rel=0.25)


@pytest.mark.parametrize(
    ("recipe", "changes"), [("cifar10_hyper_wrn40_1", {"depth": 10}), ("mnist_hyper_convnet", {})]
)
def test_computes_what_the_ordinary_network_does_with_its_kernels(recipe, changes):
    """Logits, and gradients of what is ordinary, in float64."""
    chosen = options(recipe, **changes)
    hyper, ordinary = build(chosen, SMALL).double(), build(chosen.options, SMALL).double()
    main, made = hyper.hypernetwork.module, hyper.hypernetwork.weights()
    ordinary.load_state_dict(main.state_dict() | {name: leaf.detach() for name, leaf in made.items()})
    hyper.fused = True
    x = torch.randn(2, *SMALL.input_shape, generator=generator("x"), dtype=torch.float64)
    logits, expected = hyper(x).logits, ordinary(x).logits
    torch.testing.assert_close(logits, expected)
    weight = torch.randn(logits.shape, generator=generator("w"), dtype=torch.float64)
    names = [name for name, _ in main.named_parameters()]
    found = torch.autograd.grad((weight * logits).sum(), [main.get_parameter(name) for name in names])
    grads = torch.autograd.grad((weight * expected).sum(), [ordinary.get_parameter(name) for name in names])
    torch.testing.assert_close(found, grads)
