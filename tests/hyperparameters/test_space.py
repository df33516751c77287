"""Which hyper-parameter acts where, by hand."""

import math

import pytest
import torch

from metalearn.hyperparameters.method import Hyperparameters
from metalearn.problem import Inner
from metalearn.rng import generator


def _problem(kit, **changes):
    return Hyperparameters(kit.learned(momentum=0.0, **changes), kit.context()).problem


def test_rates_by_step_and_layer_by_hand(kit):
    """Gradients of one move every weight by the rate in the row of the step and the layer's column."""
    problem = _problem(kit, learning_rates="per_layer_and_step", horizon=3)
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    inner = problem.init({}, generator("start"))
    ones = {name: torch.ones_like(leaf) for name, leaf in inner.params.items()}
    for step in range(3):
        after = problem.update({"log_rate": table.log()}, inner, ones)
        for name, leaf in after.params.items():
            expected = inner.params[name] - table[step, 0 if name.startswith("layers.1.") else 1]
            torch.testing.assert_close(leaf, expected)
        inner = after
    assert inner.slots["step"] == 3


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("global", (1, 1)), ("per_layer", (1, 2)), ("per_step", (4, 1)), ("per_layer_and_step", (4, 2))],
)
def test_start(kit, kind, shape):
    meta = _problem(kit, learning_rates=kind).space.start()
    assert list(meta) == ["log_rate"]
    torch.testing.assert_close(meta["log_rate"], torch.full(shape, math.log(0.1)))


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("global", {"network": ()}),
        ("per_layer", {"layers.1": (), "layers.3": ()}),
        (
            "per_weight",
            {
                "layers.1.weight": (3, 4),
                "layers.1.bias": (3,),
                "layers.3.weight": (3, 3),
                "layers.3.bias": (3,),
            },
        ),
    ],
)
def test_a_penalty_pulls_every_weight(kit, kind, shapes):
    """Its gradient is exp(log penalty) * w, each weight under its own penalty."""
    problem = _problem(kit, learning_rates="fixed", penalties=kind)
    start = problem.space.start()
    assert {key.partition("/")[2]: tuple(leaf.shape) for key, leaf in start.items()} == shapes
    meta = {key: torch.randn(leaf.shape, generator=generator(key)) for key, leaf in start.items()}
    params = {
        name: leaf.requires_grad_() for name, leaf in problem.init(meta, generator("start")).params.items()
    }
    batch = kit.Blobs().batch("search_train", 0)
    with_penalty = problem.inner_loss(meta, params, batch) - problem.outer_loss(meta, params, batch)
    pulls = torch.autograd.grad(with_penalty, list(params.values()))
    for (name, leaf), pull in zip(params.items(), pulls, strict=True):
        key = {"global": "network", "per_layer": name.rpartition(".")[0], "per_weight": name}[kind]
        expected = meta[f"log_penalty/{key}"].exp() * leaf.detach()
        assert expected.abs().min() > 0
        torch.testing.assert_close(pull, expected, rtol=1e-3, atol=1e-6)


def test_past_the_horizon_the_last_rate_stays(kit):
    problem = _problem(kit, learning_rates="per_step", horizon=2)
    inner = problem.init({}, generator("start"))
    inner = Inner(inner.params, inner.slots | {"step": torch.tensor(7.0, dtype=torch.float64)})
    rates = problem.space.rates({"log_rate": torch.tensor([[0.5], [2.0]]).log()}, inner.slots["step"])
    assert rates["network"].item() == pytest.approx(2.0)
