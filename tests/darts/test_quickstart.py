"""The quick start's two recipes on the real digits, cut to a few steps."""

import pytest
import torch

import tasks  # noqa: F401
from metalearn import hypergradient, options  # noqa: F401
from metalearn.build import build
from metalearn.compose import compose
from metalearn.darts.genotype import load
from metalearn.darts.search import Darts

SEARCH = ["recipe=quickstart/darts_digits_search", "machine=cpu", "network.nodes=2", "network.channels=2"]
RETRAIN = ["recipe=quickstart/darts_digits_retrain", "machine=cpu"]


@pytest.mark.slow
def test_a_search_moves_alpha_and_its_cell_trains(tmp_path):
    search = build(compose(SEARCH)).method
    assert isinstance(search, Darts)
    rows = [search.step(index) for index in range(2)]
    assert all(torch.isfinite(value) for row in rows for value in row.values())
    assert all(leaf.detach().abs().max() > 0 for leaf in search.alpha.values())
    assert float(rows[1]["alpha/entropy_normal"]) < 3 * 0.6931472
    search.artifacts(tmp_path)
    retrain = build(compose([*RETRAIN, f"network.genotype={tmp_path}/genotype.json"])).method
    assert retrain.network.genotype == load(f"{tmp_path}/genotype.json")  # type: ignore[attr-defined]
    assert torch.isfinite(retrain.step(0)["train/loss"])


def test_random_cells_differ_by_seed():
    first, same, other = (
        build(compose([*RETRAIN, f"seed={seed}"])).method.network.genotype  # type: ignore[attr-defined]
        for seed in (0, 0, 1)
    )
    assert first == same != other


@pytest.mark.slow
def test_the_search_learns():
    """The supernet's loss on the half of alpha falls well below chance, 2.3 nats, in 25 steps."""
    search = build(compose([*SEARCH, "network.channels=4", "train.steps=25"])).method
    losses = [search.step(index)["search_valid/loss"] for index in range(25)]
    assert torch.stack(losses[-5:]).mean() < 1.2
