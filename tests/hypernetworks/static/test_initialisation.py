"""The distribution that generated weights start from."""

import math

import pytest
import torch
from torch import nn

from metalearn.hypernetworks.static.chunked import Chunked
from metalearn.hypernetworks.static.hypernetize import chosen, hypernetize
from metalearn.registry import UserError

MATRICES = chosen(["convolutions", "linears"], [])
GENERATORS = {
    "blocks": {"kind": "layer_embedding", "block": 16, "embedding": 16, "hidden": 16},
    "low_rank": {"kind": "layer_embedding", "block": 16, "embedding": 16, "hidden": 16, "rank": 8},
    "chunks": {"kind": "chunked", "size": 800, "embedding": 16, "hidden": [64]},
    "chunks_of_layers": {
        "kind": "chunked", "size": 800, "embedding": 16, "hidden": [64], "layer_embedding": 8,
    },
}  # fmt: skip


def _conv_net():
    widths = [(16, 32), (32, 64)]
    layers = [(nn.Conv2d(i, o, 3, padding=1), nn.ReLU()) for i, o in widths]
    return nn.Sequential(*(part for pair in layers for part in pair), nn.Flatten(), nn.Linear(1024, 64))


def _mlp():
    return nn.Sequential(
        nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 48)
    )  # fmt: skip


NETS = {"conv": (_conv_net, (8, 16, 4, 4)), "mlp": (_mlp, (16, 96))}


def _he(net, mode):
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode=mode)
            nn.init.zeros_(module.bias)
    return net


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("net", NETS)
def test_every_layer_has_the_variance_of_its_own_fan(generator_options, net, generator, mode):
    """16, 32 and 64 channels are tiles of the same blocks: one scale for all would be wrong for two."""
    make, _ = NETS[net]
    options = generator_options(**GENERATORS[generator], initial=f"hyper{mode}")
    torch.manual_seed(0)
    for name, weight in hypernetize(make(), options, MATRICES).weights().items():
        fan = math.prod(weight.shape[1:]) if mode == "fan_in" else weight.shape[0] * weight[0, 0].numel()
        assert weight.square().mean().item() * fan == pytest.approx(2.0, rel=0.1), name


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["blocks", "chunks"])
@pytest.mark.parametrize("net", NETS)
def test_first_outputs_are_as_large_as_the_ordinary_networks(generator_options, net, generator):
    make, shape = NETS[net]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = generator_options(**GENERATORS[generator])
    plain, generated = 0.0, 0.0
    for seed in range(150):
        torch.manual_seed(seed)
        ordinary = _he(make(), "fan_in")
        with torch.no_grad():
            plain += ordinary(x).square().mean()
            generated += hypernetize(ordinary, options, MATRICES)(x).square().mean()
    assert generated / plain == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("generator", GENERATORS)
def test_ordinary_is_the_start_that_was_there(generator_options, generator):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Linear(32, 16))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    options = generator_options(**GENERATORS[generator], initial="ordinary", vectors=0.001)
    hyper = hypernetize(net, options, chosen(["convolutions", "linears", "batch_norms"], []))
    made = {name: value.detach() for name, value in hyper.weights().items()}
    for name in ("0.weight", "2.weight"):
        assert made[name].std().item() == pytest.approx(before[name].std().item(), rel=0.1)
    torch.testing.assert_close(made["1.weight"], torch.ones(32), rtol=0, atol=0.02)
    torch.testing.assert_close(made["1.bias"], torch.zeros(32), rtol=0, atol=0.02)


def test_he_blocks_have_one_scale_for_all_layers(generator_options):
    """Sheet 8.10: about He variance for the 16 inputs of a block."""
    torch.manual_seed(0)
    options = generator_options(**GENERATORS["blocks"], initial="he_blocks")
    made = hypernetize(_conv_net(), options, chosen(["convolutions"], [])).weights()
    for weight in made.values():
        assert weight.square().mean().item() * 16 * 9 == pytest.approx(2.0, rel=0.1)
    for generator in ("chunks", "chunks_of_layers"):
        refused = generator_options(**GENERATORS[generator], initial="he_blocks")
        with pytest.raises(UserError, match="no basic blocks"):
            hypernetize(_conv_net(), refused, MATRICES)


@pytest.mark.parametrize("generator", GENERATORS)
def test_normal_draws_all_weights_alike(generator_options, generator):
    torch.manual_seed(0)
    options = generator_options(**GENERATORS[generator], initial="normal", deviation=0.02)
    hyper = hypernetize(_conv_net(), options, MATRICES)
    for name, parameter in hyper.generator.named_parameters():
        if "bias" in name:
            assert not parameter.any()
        else:
            assert parameter.abs().max() <= 0.04
            few = 3 / math.sqrt(2 * parameter.numel())  # three deviations of what chance makes of a deviation
            expected = pytest.approx(0.02 * 0.88, rel=max(0.02, few))  # cut off at two deviations
            assert parameter.std().item() == expected


@pytest.mark.parametrize("generator", GENERATORS)
def test_parameters_lie_row_by_row(generator_options, generator):
    """Torch's LBFGS, for one, refuses others; a few embeddings lay column by column."""
    hyper = hypernetize(nn.Linear(32, 32), generator_options(**GENERATORS[generator]), MATRICES)
    assert all(parameter.is_contiguous() for parameter in hyper.parameters())


@pytest.mark.parametrize("generator", GENERATORS)
def test_all_parameters_of_a_generator_get_gradients_at_the_first_step(generator_options, generator):
    torch.manual_seed(0)
    hyper = hypernetize(_mlp(), generator_options(**GENERATORS[generator]), MATRICES)
    hyper(torch.rand(4, 96)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in hyper.parameters())
    assert all(parameter.grad.any() for parameter in hyper.generator.parameters())  # type: ignore[union-attr]


def test_chunks_do_not_lean_towards_each_other(generator_options):
    """ReLU gives all chunks a part in common; the weights of a unit that lie in several would add up."""
    torch.manual_seed(0)
    options = generator_options("chunked", size=100, embedding=16, hidden=[64, 64])
    generator = hypernetize(_mlp(), options, MATRICES).generator
    assert isinstance(generator, Chunked)
    chunks = generator.layers(generator.chunk_embeddings).detach()
    common = chunks.mean(0).square().mean() / chunks.square().mean()
    assert common.item() < 3 / len(chunks)
