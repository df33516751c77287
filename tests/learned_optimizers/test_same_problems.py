"""A learned optimizer and its controls are recipes of their own: their problems must be the same ones."""

import dataclasses

import pytest

from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.config import OptimizeeOptions
from metalearn.replicate import load
from metalearn.replicate.jobs import jobs
from metalearn.report.plan import stage_of

PAIRS = [
    ("quickstart/l2l_quadratic_lstm", "quickstart/l2l_quadratic_controls"),
    ("quickstart/l2l_digits_lstm", "quickstart/l2l_digits_controls"),
    ("learned_optimizers/quadratic", "learned_optimizers/quadratic_controls"),
    ("learned_optimizers/mnist_mlp", "learned_optimizers/mnist_mlp_controls"),
    ("learned_optimizers/mnist_mlp_applied", "learned_optimizers/mnist_mlp_controls"),
    ("learned_optimizers/quadratic_applied", "learned_optimizers/quadratic_controls"),
    ("learned_optimizers/digits_mlp", "learned_optimizers/digits_mlp_controls"),
]


PLANS = [
    "figure4_quadratic",
    "figure4_mnist",
    "figure5",
    "figure6",
    "generalisation",
    "generalisation_mixture",
    "score_card",
]


@pytest.mark.parametrize(("learned", "controls"), PAIRS)
def test_recipes_agree(learned, controls):
    register_all()
    _agree(compose([f"recipe={learned}"]), compose([f"recipe={controls}"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tier"), [*((name, "cpu") for name in PLANS), ("figure5", "smoke"), ("score_card", "paper")]
)
def test_stages_agree_with_their_controls(name, tier, tmp_path):
    """In every panel of a plan, with what its tier changes."""
    register_all()
    (plan,) = load(f"learned_optimizers/{name}", tier=tier)
    found = {job.stage: compose(job.overrides) for job in jobs(plan, [], tmp_path) if job.seed == 0}
    panels = [stage for stage, config in found.items() if config.method.name == "applied_optimizer"]
    assert panels == [stage_of(row) for row in plan.table.rows.values() if " " not in row]
    for stage in panels:
        (controls,) = (need for need in plan.needs(stage) if found[need].method.name == "tuned_optimizers")
        assert controls in (f"{stage.removesuffix('_mlps').removesuffix('_pretrained')}_controls", "controls")
        _agree(found[stage], found[controls], but=("valid_problems",))


def _agree(ours, theirs, but=()):
    assert ours.task == theirs.task
    assert ours.network == theirs.network
    for field in dataclasses.fields(OptimizeeOptions):
        if field.name not in ("name", *but):
            assert getattr(ours.method, field.name) == getattr(theirs.method, field.name)
    assert theirs.train.steps == len(theirs.method.optimizers) * len(theirs.method.learning_rates)
    assert theirs.role == "control"
