"""The paper's schedules in the recipes: whole epochs of as many batches as the authors' loaders give."""

import math

import pytest

from metalearn import cli
from metalearn.build import build
from metalearn.compose import compose

cli.register_all()
HALF, ALL, IMAGENET = 25_000, 50_000, 1_281_167


@pytest.mark.parametrize(
    ("recipe", "examples", "batch", "batches", "epochs"),
    [
        ("cifar10_search", HALF, 64, 391, 50),
        ("cifar10_retrain", ALL, 96, 521, 600),
        ("imagenet_retrain", IMAGENET, 128, 10_010, 250),
    ],
)
def test_steps_are_the_papers_epochs(recipe, examples, batch, batches, epochs):
    config = compose([f"recipe=darts/{recipe}"])
    assert (config.task.batch, config.task.drop_last, config.task.valid_size) == (batch, False, 0)
    assert math.ceil(examples / batch) == batches
    assert config.train.steps == epochs * batches
    assert batches % config.train.checkpoint_every == 0


def test_drop_path_and_rate_stand_still_within_an_epoch():
    """Drop path 0.2 * epoch / epochs, the cosine of epoch / epochs (authors' code, train.py)."""
    lines = ["recipe=darts/cifar10_retrain", "machine=cpu", "task=digits", "task.batch=400", "train.steps=16"]
    lines += ["network.cells=3", "network.channels=2", "network.auxiliary=false", "method.auxiliary_weight=0"]
    parts = build(compose(lines))
    assert parts.task.batches("train") == 4  # of 1,442: the last has 242
    for index in range(10):
        parts.method.step(index)
        epoch = index // 4
        assert parts.method.network.progress == epoch / 4
        rate = 0.025 * (1 + math.cos(math.pi * epoch / 4)) / 2
        assert parts.method.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
