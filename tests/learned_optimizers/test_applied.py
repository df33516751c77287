"""A trained optimizer applied: the same problems, its controls run again, its score."""

import json
import math

import pytest
import torch

from metalearn.learned_optimizers import controls, stored
from metalearn.learned_optimizers.applied import SERIES, AppliedOptimizer
from metalearn.learned_optimizers.baselines import TunedOptimizers
from metalearn.learned_optimizers.config import AppliedOptimizerOptions
from metalearn.learned_optimizers.lstm import LstmRule
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.registry import UserError
from metalearn.rng import generator


@pytest.fixture
def trained(kit, tmp_path):
    """An optimizer on disk, as meta-training leaves it before its first step."""
    context = kit.context(kit.Blobs())
    rule = LstmRule(kit.rule(hidden=3), machine=context.machine)
    stored.save(tmp_path / "trained", rule, rule.init(generator("trained")), {})
    return tmp_path / "trained"


@pytest.fixture
def tuned(kit, tmp_path):
    """A tuning run's directory, and the run."""
    options = kit.tuned(optimizers=["sgd", "adam", "nadam"])
    method = TunedOptimizers(options, kit.context(kit.Blobs(), 9))
    for index in range(9):
        method.step(index)
    folder = tmp_path / "tuned"
    (folder / "artifacts").mkdir(parents=True)
    method.artifacts(folder / "artifacts")
    return folder, method


def _options(**changes):
    values = {
        "name": "applied_optimizer", "horizon": 6, "deviation": 0.5, "function_gradients": "own",
        "valid_problems": 2, "test_problems": 2, "controls": None, "reference": "adam", "window": 2,
    }  # fmt: skip
    return AppliedOptimizerOptions(**(values | changes))


def test_it_is_the_trained_rule_on_the_problems_of_meta_training(kit, trained):
    learned = MetaTraining(kit.learned(), kit.context(kit.Blobs())._replace(rule=kit.rule(hidden=3)))
    with torch.no_grad():
        for key, leaf in stored.load(trained)[1].items():
            learned.meta[key].copy_(leaf)
    applied = AppliedOptimizer(_options(optimizer=str(trained)), kit.context(kit.Blobs(), 1))
    for split in ("valid", "test"):
        expected = learned.evaluate(split)
        found = applied.evaluate(split)
        assert found == expected
        assert torch.equal(applied.curves[split][SERIES], learned.curves[split])


def test_the_controls_are_the_tuned_ones(kit, trained, tuned):
    folder, tuning = tuned
    applied = AppliedOptimizer(
        _options(optimizer=str(trained), controls=str(folder)), kit.context(kit.Blobs())
    )
    found, expected = applied.evaluate("test"), tuning.evaluate("test")
    for name in ("sgd", "adam", "nadam"):
        assert found[f"test/final_loss/{name}"] == expected[f"test/final_loss/{name}"]
    assert found["test/final_loss/best"] == expected["test/final_loss"]
    assert applied.controls is not None
    assert applied.controls.winner == tuning.winner()


def test_a_control_scored_against_itself_is_even(kit, trained, tuned, monkeypatch):
    """Adam with the tuned rate in the place of the trained rule has every quotient 1."""
    folder, method = tuned
    adam = controls.read(str(folder), _options(optimizer=""), method.family).rules["adam"]
    monkeypatch.setattr(stored, "load", lambda path, machine: (adam, {}))  # noqa: ARG005
    applied = AppliedOptimizer(
        _options(optimizer=str(trained), controls=str(folder)), kit.context(kit.Blobs())
    )
    found = applied.evaluate("test")
    assert found["test/final_ratio"] == found["test/speed_up"] == 1


def test_artifacts(kit, trained, tuned, tmp_path):
    folder, _ = tuned
    applied = AppliedOptimizer(
        _options(optimizer=str(trained), controls=str(folder)), kit.context(kit.Blobs())
    )
    assert applied.step(0)["train/final_loss"] == applied.evaluate("valid")["valid/final_loss"]
    found = applied.evaluate("test")
    applied.artifacts(tmp_path)
    record = json.loads((tmp_path / "score.json").read_text())
    assert record["metrics"]["final_ratio"] == found["test/final_ratio"].item()
    assert record["budget"]["tuning"] == {"rollouts": 9, "optimizee_steps": 9 * 2 * 6}
    series = json.loads((tmp_path / "trajectories.json").read_text())["series"]
    assert list(series) == [SERIES, "sgd", "adam", "nadam"]
    assert all(math.isfinite(value) for curve in series.values() for value in curve)


def test_what_meta_training_cost(kit, trained, tmp_path):
    """From the run directory: 7 steps of 3 unrolled steps of 2 problems in 5 groups."""
    (trained / "run.yaml").write_text(
        "method: {name: learned_optimizer, unroll: 3, problems: 2, groups: 5}\nseed: 0\n"
    )
    (trained / "status.json").write_text('{"step": 7}')
    (trained / "timing.jsonl").write_text('{"step": 7, "seconds": 1.5}\n{"step": 8, "sec')
    AppliedOptimizer(_options(optimizer=str(trained)), kit.context(kit.Blobs())).artifacts(tmp_path)
    record = json.loads((tmp_path / "score.json").read_text())
    assert record["budget"]["meta_training"] == {"optimizee_steps": 210, "seconds": 1.5}


MISTAKES = [
    ({"window": 7}, "at most method.horizon, 6"),
    ({"controls": "nowhere"}, "no artifacts/tuning.json"),
    ({"horizon": 4, "controls": "tuned"}, "tuned on other problems, horizon 6 for 4"),
    ({"reference": "rmsprop", "controls": "tuned"}, "sgd, adam, nadam"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_mistakes_are_explained(kit, trained, tuned, changes, message):
    if changes.get("controls") == "tuned":
        changes = changes | {"controls": str(tuned[0])}
    with pytest.raises(UserError, match=message):
        AppliedOptimizer(_options(optimizer=str(trained), **changes), kit.context(kit.Blobs()))


def test_controls_of_another_network_are_refused(kit, trained, tuned):
    """What an older version has tuned does not say which network, and is taken."""
    path = tuned[0] / "artifacts" / "tuning.json"
    record = json.loads(path.read_text())
    options = _options(optimizer=str(trained), controls=str(tuned[0]))
    path.write_text(json.dumps(record | {"coordinates": record["coordinates"] + 1}))
    with pytest.raises(
        UserError, match=f"coordinates {record['coordinates'] + 1} for {record['coordinates']}"
    ):
        AppliedOptimizer(options, kit.context(kit.Blobs()))
    del record["coordinates"]
    path.write_text(json.dumps(record))
    assert AppliedOptimizer(options, kit.context(kit.Blobs())).controls is not None
