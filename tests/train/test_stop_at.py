"""train.stop_at ends a run after a checkpoint; what goes on later is the run that never stopped."""

import pytest
from noisy_quadratic import NoisyQuadratic, configuration, train
from omegaconf import OmegaConf

from metalearn.train.files import read_json


def _rows(folder):
    return (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "rungs", [(5, 10), (4, 7, 13), (1,)]
)  # at evaluations, between them, at the first step
def test_a_promoted_run_is_the_unbroken_one_bitwise(tmp_path, rungs):
    whole = _rows(train(configuration(tmp_path / "whole"), NoisyQuadratic()))
    for step in rungs:
        config = configuration(tmp_path / "rungs")
        config.train.stop_at = step
        stopped = train(config, NoisyQuadratic())

        status = read_json(stopped / "status.json")
        assert (status["state"], status["step"]) == ("stopped", step)
        assert whole.startswith(_rows(stopped))
        assert len(_rows(stopped)) < len(whole)
    promoted = train(configuration(tmp_path / "rungs"), NoisyQuadratic())

    assert read_json(promoted / "status.json")["state"] == "finished"
    assert _rows(promoted) == whole


def test_a_stop_behind_the_run_writes_nothing_and_leaves_no_trace_in_its_configuration(tmp_path):
    rows = []
    for step in (7, 3):
        config = configuration(tmp_path / "run")
        config.train.stop_at = step
        stopped = train(config, NoisyQuadratic())
        rows.append(_rows(stopped))

    assert rows[0] == rows[1]
    assert read_json(stopped / "status.json")["step"] == 7
    assert OmegaConf.load(stopped / "run.yaml").train.stop_at is None


def test_the_last_step_finishes_a_run_whatever_stop_at_says(tmp_path):
    config = configuration(tmp_path / "run")
    config.train.stop_at = config.train.steps
    assert read_json(train(config, NoisyQuadratic()) / "status.json")["state"] == "finished"
