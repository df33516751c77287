"""A learned optimizer and its controls are recipes of their own: their problems must be the same ones."""

import dataclasses

import pytest

from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.config import OptimizeeOptions

PAIRS = [
    ("quickstart/l2l_quadratic_lstm", "quickstart/l2l_quadratic_controls"),
    ("quickstart/l2l_digits_lstm", "quickstart/l2l_digits_controls"),
    ("learned_optimizers/quadratic", "learned_optimizers/quadratic_controls"),
    ("learned_optimizers/mnist_mlp", "learned_optimizers/mnist_mlp_controls"),
]


@pytest.mark.parametrize(("learned", "controls"), PAIRS)
def test_recipes_agree(learned, controls):
    register_all()
    ours, theirs = compose([f"recipe={learned}"]), compose([f"recipe={controls}"])
    assert ours.task == theirs.task
    assert ours.network == theirs.network
    for field in dataclasses.fields(OptimizeeOptions):
        if field.name != "name":
            assert getattr(ours.method, field.name) == getattr(theirs.method, field.name)
    assert theirs.train.steps == len(theirs.method.optimizers) * len(theirs.method.learning_rates)
    assert theirs.role == "control"
