"""The derived network's faster form: the same outputs, gradients and statistics as the plain one."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from metalearn.darts import rectified
from metalearn.darts.config import CellNetworkOptions, ImagenetNetworkOptions
from metalearn.darts.derived import CellNetwork, DerivedNetwork
from metalearn.darts.imagenet import ImagenetNetwork
from metalearn.network import Output, multiply_adds
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec

CIFAR = TaskSpec("cifar10", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")
IMAGENET = dataclasses.replace(CIFAR, name="imagenet", input_shape=(3, 224, 224), outputs=7)
GENOTYPES = ["darts_v2", "darts_v1", "nasnet_a", "amoebanet_a"]


def build(genotype: str, drop_path: float = 0.3) -> DerivedNetwork:
    with seeded("derived", genotype):
        return CellNetwork(
            CellNetworkOptions("darts_cell", genotype, 4, 4, 3, 4, True, drop_path), CIFAR
        ).double()


def images(side: int = 32, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=generator("x"), dtype=torch.float64)


def run(network: DerivedNetwork, x: torch.Tensor, fused: bool) -> tuple[Output, dict, dict]:
    """Output, gradients of weights and image, and buffers after one pass of a copy."""
    network, x = copy.deepcopy(network), x.clone().requires_grad_()
    network.fused, network.progress = fused, 0.5
    with seeded("masks"):
        output = network(x)
    target = torch.arange(len(x))
    loss = F.cross_entropy(output.logits, target)
    if output.auxiliary is not None:
        loss = loss + 0.4 * F.cross_entropy(output.auxiliary, target)
    loss.backward()
    grads = {name: leaf.grad for name, leaf in network.named_parameters()} | {"x": x.grad}
    return output, grads, dict(network.named_buffers())


def check_equal(network: DerivedNetwork, x: torch.Tensor) -> None:
    plain, fast = run(network, x, fused=False), run(network, x, fused=True)
    torch.testing.assert_close(fast[0]._asdict(), plain[0]._asdict(), rtol=1e-12, atol=1e-12)
    assert fast[1].keys() == plain[1].keys()
    for name, expected in plain[1].items():
        assert (expected is None) == (fast[1][name] is None), name
        if expected is not None:
            assert torch.linalg.vector_norm(fast[1][name] - expected) <= 1e-12 * (1 + expected.norm()), name
    torch.testing.assert_close(fast[2], plain[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_equals_the_plain_form_in_training(genotype, monkeypatch):
    """With drop path, the same masks; all gradients; running statistics too."""
    cells = []
    original = rectified.forward
    monkeypatch.setattr(rectified, "forward", lambda *args: cells.append(args) or original(*args))
    check_equal(build(genotype), images())
    assert len(cells) == 4  # of the fused pass alone


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_equals_the_plain_form_in_evaluation(genotype):
    network = build(genotype)
    run(network, images(), fused=False)
    check_equal(network.eval(), images())


def test_equals_the_plain_form_on_large_images():
    """Maps of odd sides, the other stem, the other head."""
    options = ImagenetNetworkOptions("darts_imagenet", "darts_v2", 4, 4, 4, True, 0.2)
    with seeded("large"):
        network = ImagenetNetwork(options, IMAGENET).double()
    check_equal(network, images(224, 2))


def test_dilated_convolutions_take_their_own_backward(monkeypatch):
    calls = []
    original = rectified.Depthwise.apply
    monkeypatch.setattr(rectified.Depthwise, "apply", lambda *args: calls.append(args) or original(*args))
    run(build("darts_v2"), images(), fused=True)
    assert len(calls) == 2  # darts_v2 has one in each of its two normal cells


def test_autocast_computes_in_bf16():
    network = build("darts_v2", 0.0).float()
    network.fused = True
    x = images(batch=4).float()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x)
    F.cross_entropy(output.logits.float(), torch.arange(4)).backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(leaf.grad.isfinite().all() for name, leaf in network.named_parameters() if "aux" not in name)
    network.fused = False
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x).logits, output.logits, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_export_sees_the_plain_form():
    """So that a program holds ordinary operations and any batch size."""
    network = build("darts_v2").float().eval()
    network.fused = True
    x, batch = images().float(), torch.export.Dim("batch", min=1)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    larger = images(batch=5).float()
    torch.testing.assert_close(program.module()(larger).logits, network(larger).logits, rtol=1e-4, atol=1e-5)


def test_multiply_adds_are_those_of_the_plain_form():
    network = build("amoebanet_a").float()
    plain = multiply_adds(network, (3, 32, 32))
    network.fused = True
    assert multiply_adds(network, (3, 32, 32)) == plain
