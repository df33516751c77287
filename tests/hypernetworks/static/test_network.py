"""`network=hypernetwork`: any registered network, its options checked, its generated weights penalised."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from metalearn import cli, registry
from metalearn.build import build
from metalearn.compose import compose
from metalearn.config import resolve
from metalearn.hypernetworks.static.network import HypernetworkOf
from metalearn.network import Network
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.train.stored_config import plain

cli.register_all()
SPEC = TaskSpec(
    "images", "classification", (1, 8, 8), 3, {"train": 9}, "error", "", "", "", ""
)  # fmt: skip
SMALL = [
    "network=hypernetwork",
    "network.generator.layer_embedding.block=2",
    "network.generator.layer_embedding.embedding=3",
    "network.generator.layer_embedding.hidden=2",
    "+network.options.channels=[2,4]",
    "+network.options.kernel=3",
    "+network.options.hidden=[4]",
]


def _network(*overrides: str) -> HypernetworkOf:
    torch.manual_seed(0)
    return registry.build("network", compose([*SMALL, *overrides]).network, spec=SPEC)


def _x():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_penalty_is_half_the_squares_in_training_alone():
    network = _network("network.penalty=0.02")
    weights = network.hypernetwork.weights()
    expected = 0.01 * sum(weight.square().sum() for weight in weights.values())
    torch.testing.assert_close(network(_x()).penalty, expected)
    assert network.eval()(_x()).penalty is None
    assert _network()(_x()).penalty is None


def test_penalty_of_kernels_counts_ordinary_ones_and_no_biases():
    changes = [
        "network.generates=[convolutions,biases]",
        "network.penalty=0.02",
        "network.penalty_of=kernels",
    ]
    network = _network(*changes)
    weights, layers = network.hypernetwork.weights(), network.hypernetwork.module.layers
    kernels = [leaf for name, leaf in weights.items() if name.endswith("weight")]
    kernels += [layer.weight for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert (len(weights), len(kernels)) == (6, 4)  # two convolutions and two linear maps, four biases
    expected = 0.01 * sum(kernel.square().sum() for kernel in kernels)
    torch.testing.assert_close(network(_x()).penalty, expected)


def test_penalty_is_differentiated_through_the_generator():
    """Central differences of the penalty itself, along a random direction of each parameter (sheet 8.9)."""
    network, x = _network("network.penalty=0.02").double(), _x().double()
    parameters = list(network.hypernetwork.generator.parameters())
    grads = torch.autograd.grad(network(x).penalty, parameters)
    for parameter, grad in zip(parameters, grads, strict=True):
        direction, values = torch.randn_like(parameter), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
                values.append(network(x).penalty)
                parameter.add_(direction, alpha=-sign * 1e-5)
        torch.testing.assert_close(
            (grad * direction).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-12
        )


def test_progress_and_fused_reach_the_main_network():
    network = _network()
    network.progress, network.fused = 0.5, True
    network(_x())
    main = network.hypernetwork.module
    assert isinstance(main, Network)
    assert (main.progress, main.fused) == (0.5, True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+network.options.channel=[2]"], "network.options.channel: no such option"),
        (["+network.options.kernel=-1"], "network.options.kernel: got -1, must be at least 1"),
        (["+network.options.hidden=much"], "network.options.hidden: got 'much'"),
        (["+network.options.name=mlp"], "network.options.name: got 'mlp', must be 'convnet'"),
        (["network.options=3"], "network.options: got 3"),
        (["network.of=mpl"], "network.of: no network is called 'mpl'; choose one of: mlp"),
        (["network.of=hypernetwork"], "network.of: got 'hypernetwork'"),
        (["network.generates=[kernels]"], "network.generates: got 'kernels', must be one of convolutions"),
        (["network.generator.kind=chunky"], "network.generator.kind: got 'chunky'"),
        (["network.generator.chunked.size=0"], "network.generator.chunked.size: got 0"),
    ],
)
def test_wrong_options_are_named(overrides, message):
    with pytest.raises(UserError) as error:
        compose(["network=hypernetwork", *overrides])
    assert str(error.value).startswith(message)


def test_options_of_the_main_network_are_stored_whole():
    config = compose(SMALL)
    assert config.network.options.channels == [2, 4]
    assert config.network.options.batch_norm is True  # from conf/network/convnet.yaml
    assert resolve(OmegaConf.create(plain(config))) == config


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["network.of=mlp"],
        ["network.of=lstm_lm", "+network.options.units=8", "task=python_docs", "task.batch=2", "task.time=4"],
    ],
)
def test_any_registered_network_can_be_one(overrides):
    config = compose([*SMALL[:4], "machine=cpu", "network.generates=[linears,biases]", *overrides])
    method = build(config).method
    assert all(value.isfinite() for index in range(2) for value in method.step(index).values())


def test_an_exclude_that_matches_nothing_is_refused():
    with pytest.raises(
        UserError, match=r"network\.exclude: got \['layer\.0\.\*'\].*names are layers\.0\.weight, "
    ):
        _network("network.exclude=[layer.0.*]")


def test_translations_are_refused():
    with pytest.raises(UserError, match="is a translation"):
        registry.build("network", compose(SMALL).network, spec=replace(SPEC, kind="translation"))
