"""The fused supernet against the plain one, in float64: one function of the same parameters."""

import dataclasses

import pytest
import torch
from torch.func import functional_call

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.search import Darts
from metalearn.darts.space import Mixture, running_statistics_kept
from metalearn.darts.supernet import Supernet
from metalearn.hypergradient.config import FiniteDifferenceOptions, FirstOrderOptions
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.method import Context
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.tree import Tree, norm, tree_map

ESTIMATORS = {
    "first_order": FirstOrder(FirstOrderOptions("first_order")),
    "finite_difference": FiniteDifference(FiniteDifferenceOptions("finite_difference", 0.01)),
}


@pytest.fixture(scope="session")
def composed():
    return compose(["method=darts", "network=darts_supernet", "task=digits"])


@pytest.fixture
def supernet(composed, images):
    """Builds three cells of three nodes, of which two reduce, in float64."""

    def build(fused: bool, channels: int = 8) -> Supernet:
        options = dataclasses.replace(composed.network, cells=3, channels=channels, nodes=3, stem_multiplier=1)
        with seeded("fused"):
            network = Supernet(options, images(torch.float64).spec).double()
        network.fused = fused
        return network

    return build


def alphas(network: Supernet) -> Tree:
    return {
        kind: torch.randn(choice.shape, generator=generator(kind), dtype=torch.float64).requires_grad_()
        for kind, choice in network.choices.items()
    }


def run(network: Supernet, batch) -> tuple[torch.Tensor, Tree]:
    """The loss, and its gradient by alpha and by the weights."""
    alpha = alphas(network)
    params = {key: leaf.detach().requires_grad_() for key, leaf in network.named_parameters()}
    mixture = Mixture(tree_map(lambda leaf: leaf.softmax(dim=-1), alpha))
    logits = functional_call(network, params, (batch.x,), {"mixture": mixture}).logits
    loss = torch.nn.functional.cross_entropy(logits, batch.y)
    leaves = alpha | params
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_equal(found: Tree, expected: Tree, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        worst = (found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp_min(1e-9)
        assert worst < tolerance, (key, float(worst))


@pytest.mark.parametrize("channels", [2, 8])
def test_loss_gradients_and_statistics_are_the_plain_ones(supernet, images, channels):
    batch = images(torch.float64).batch("search_train", 0)
    plain, fused = supernet(False, channels), supernet(True, channels)
    expected, gradients = run(plain, batch)
    loss, found = run(fused, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    assert_equal(found, gradients)
    buffers = dict(plain.named_buffers())
    torch.testing.assert_close(dict(fused.named_buffers()), buffers, rtol=1e-12, atol=1e-14)
