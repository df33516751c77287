"""Tuning by hand: the right rate, the same problems, honest edges."""

import json
import math

import pytest
import torch

from metalearn.learned_optimizers.baselines import TunedOptimizers
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.registry import UserError
from metalearn.task import Batch


def _tune(kit, task, **changes):
    options = kit.tuned(**changes)
    steps = len(options.optimizers) * len(options.learning_rates)
    method = TunedOptimizers(options, kit.context(task, steps))
    return method, [method.step(index) for index in range(steps)]


def _bowl(kit):
    """||3 theta - y||^2, curvature 18: SGD at 1/18 is Newton's method, from 1/9 on it diverges."""
    task = kit.Quadratics(2, 3)
    drawn = task.batch
    task.batch = lambda split, index: Batch(
        3 * torch.eye(3).expand(2, 3, 3), drawn(split, index).y, (split, index)
    )
    return task


def test_finds_the_best_rate(kit):
    rates = [0.001, 0.01, 1 / 18, 0.1, 0.2]
    method, steps = _tune(kit, _bowl(kit), optimizers=["sgd"], learning_rates=rates)
    assert method.best() == {"sgd": 2}
    assert [step["train/diverged"].item() for step in steps] == [0, 0, 0, 0, 1]
    metrics = method.evaluate("test")
    assert metrics["test/final_loss/sgd"] < 1e-9
    assert metrics["test/learning_rate/sgd"] == pytest.approx(1 / 18)
    assert metrics["test/edge_of_grid/sgd"] == 0


def test_marks_the_edge_of_the_grid(kit, tmp_path):
    method, _ = _tune(kit, _bowl(kit), optimizers=["sgd"], learning_rates=[0.001, 0.01])
    assert method.evaluate("valid")["valid/edge_of_grid/sgd"] == 1
    method.artifacts(tmp_path)
    assert json.loads((tmp_path / "tuning.json").read_text())["edge_of_grid"] == ["sgd"]


def test_a_rate_that_diverges_to_infinity_is_never_chosen(kit, tmp_path):
    """Even where it is the only one: such an optimizer is left out."""
    method, steps = _tune(kit, _bowl(kit), optimizers=["sgd", "adam"], learning_rates=[1e8], horizon=30)
    assert method.final[0, 0] == torch.inf
    assert steps[0]["train/diverged"] == 1
    assert all(value.isfinite() for step in steps for value in step.values())
    assert method.best() == {"adam": 0}
    assert method.winner() == "adam"
    method.artifacts(tmp_path)
    tuning = json.loads((tmp_path / "tuning.json").read_text())
    assert tuning["final_validation_loss"]["sgd"] == [None]


def test_the_winner_is_chosen_on_validation_problems(kit):
    method, _ = _tune(kit, kit.Blobs())
    metrics = method.evaluate("test")
    assert metrics["test/final_loss"] == metrics[f"test/final_loss/{method.winner()}"]
    valid = method.evaluate("valid")
    names = list(method.options.optimizers)
    assert method.winner() == min(names, key=lambda name: valid[f"valid/final_loss/{name}"])
    grid = {
        (n, r): method.final[i, j]
        for i, n in enumerate(names)
        for j, r in enumerate(method.options.learning_rates)
    }
    assert valid["valid/final_loss"] == min(grid.values())


@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_same_problems_as_the_learned_optimizer(kit, task):
    """Both start from the same losses, on validation and on test problems."""
    learned = MetaTraining(kit.learned(), kit.context(getattr(kit, task)()))
    tuned, _ = _tune(kit, getattr(kit, task)())
    for split in ("valid", "test"):
        learned.evaluate(split), tuned.evaluate(split)
        for curve in tuned.curves[split].values():
            assert torch.equal(curve[0], learned.curves[split][0])
    assert not torch.equal(learned.curves["valid"][0], learned.curves["test"][0])


def test_resume_is_exact(kit):
    whole, _ = _tune(kit, kit.Blobs())
    half = TunedOptimizers(kit.tuned(), kit.context(kit.Blobs(), 15))
    for index in range(7):
        half.step(index)
    rest = TunedOptimizers(kit.tuned(), kit.context(kit.Blobs(), 15))
    state = half.state_dict()
    assert all(part.isfinite().all() for part in state.values())  # the loop saves nothing else
    rest.load_state_dict(state)
    for index in range(7, 15):
        rest.step(index)
    assert torch.equal(rest.final, whole.final)
    assert rest.evaluate("test") == whole.evaluate("test")


def test_before_the_first_step_there_is_nothing_to_report(kit):
    assert TunedOptimizers(kit.tuned(), kit.context(kit.Blobs(), 15)).evaluate("valid") == {}


def test_artifacts(kit, tmp_path):
    method, _ = _tune(kit, kit.Blobs())
    final = method.evaluate("test")["test/final_loss/adam"].item()
    method.artifacts(tmp_path)
    curves = json.loads((tmp_path / "trajectories.json").read_text())
    assert list(curves["series"]) == method.options.optimizers
    assert curves["series"]["adam"][-1] == pytest.approx(final)
    tuning = json.loads((tmp_path / "tuning.json").read_text())
    assert tuning["best"]["adam"] in method.options.learning_rates
    assert tuning["budget"] == {"rollouts": 15, "optimizee_steps": 15 * 2 * 6}
    assert all(math.isfinite(x) for x in tuning["final_validation_loss"]["adam"])


MISTAKES = [
    ({"optimizers": ["adagrad"]}, 3, "must be one or more of: sgd, momentum, nag, rmsprop, adam, adamw"),
    ({"learning_rates": [0.1, 0.01]}, 10, "positive and ascending"),
    ({"betas": [0.9]}, 15, "two numbers"),
    ({}, 14, "set train.steps=15"),
]


@pytest.mark.parametrize(("changes", "steps", "message"), MISTAKES)
def test_mistakes_are_explained(kit, changes, steps, message):
    with pytest.raises(UserError, match=message):
        TunedOptimizers(kit.tuned(**changes), kit.context(kit.Blobs(), steps))
