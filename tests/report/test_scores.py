"""The table of scores: what runs left, over seeds."""

import json

import pytest

from metalearn import report
from metalearn.report.page import Grid, Words
from metalearn.report.scores import HEADER, scores


def _leave(path, ratio, steps, reached=1.0, edge=()):
    """`artifacts/score.json` as an applied optimizer leaves it."""
    metrics = {
        "final_loss": 0.2, "final_loss/adam": 0.4, "final_ratio": ratio, "final_ratio/best": 2 * ratio,
        "speed_up": 100 / steps, "steps_to_reach": float(steps), "reached": reached, "diverged": 0.25,
        "rose": 0.5,
    }  # fmt: skip
    record = {
        "task": "digits", "horizon": 100, "problems": 10, "reference": "adam", "metrics": metrics,
        "rates": {"adam": 0.03, "nag": 1.0}, "winner": "nag", "edge_of_grid": list(edge),
        "budget": {
            "tuning": {"rollouts": 63, "optimizee_steps": 25200},
            "meta_training": {"optimizee_steps": 16000, "seconds": 61.2},
        },
    }  # fmt: skip
    (path / "artifacts" / "score.json").write_text(json.dumps(record))


@pytest.fixture
def table(replication, make_plan):
    """Two stages; the first has scores of two seeds."""
    folders = replication(retrain=[2.0, 2.5], random=[3.0, 3.1])
    _leave(folders["retrain"][0], ratio=0.5, steps=50)
    _leave(folders["retrain"][1], ratio=0.5, steps=101, reached=0.5, edge=["adam"])
    return report.plan(make_plan(), folders)


def test_a_row_for_each_stage_with_scores(table):
    grid, _, costs = scores([table])
    assert isinstance(grid, Grid)
    assert isinstance(costs, Words)
    (row,) = grid.rows
    cells = dict(zip(HEADER, row, strict=True))
    assert cells["setting"] == "retrain"
    assert cells["tuned control"] == "adam 0.03*"
    assert cells["ratio"] == "0.5 (0.5 to 0.5)"
    assert cells["ratio to it"] == "1 (1 to 1)"
    assert str(cells["speed-up"]).startswith("at most 1.41 (")
    assert str(cells["speed-up"]).endswith("never in 1 of 2 seeds")
    assert (cells["reached"], cells["diverged"], cells["rose"]) == ("75%", "25%", "50%")
    assert cells["problems"] == "10 x 2 seeds"
    assert "16,000 steps of one problem in 61 s" in costs.text
    assert "25,200 steps (63 pairs" in costs.text


def test_plans_without_scores_say_nothing(replication, make_plan):
    assert scores([report.plan(make_plan(), replication(retrain=[2.0], random=[3.0]))]) == []
