"""Run directories, cards and published rows as tests want them."""

import json

import pytest
from omegaconf import OmegaConf

from metalearn.replicate.cards.card import Card, Row
from metalearn.replicate.cards.catalogue import Entry, PaperOptions, RowOptions, TableOptions

GIT = {"commit": "0123456789abcdef", "dirty": False}
TASK = {"name": "digits", "digest": "d1", "provenance": "embedded", "source": "UCI", "comparable": True}


@pytest.fixture
def make_run():
    """`make_run(folder, seed, value, ...)` leaves a run directory as the loop does."""

    def make(path, seed, value, state="finished", joules=None, task=None, **config):
        (path / "artifacts").mkdir(parents=True)
        values = {
            "seed": seed,
            "task": {"name": "digits"},
            "train": {"steps": 100, "minutes": None},
            **config,
        }
        (path / "run.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
        (path / "status.json").write_text(json.dumps({"state": state, "step": 40, "message": "why"}))
        rows = [{"step": 50, "valid/error": 9.0}, {"step": 100, "valid/error": 8.0}]
        rows.append({"step": 100, "test/error": value, "test/loss": value / 10, "selected/step": 50})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        time = {"step": 60, "seconds": 30.0, **({} if joules is None else {"joules": joules})}
        (path / "timing.jsonl").write_text(json.dumps(time) + "\n")
        energy = {
            "source": None if joules is None else "RAPL",
            "reason": "none told" if joules is None else None,
        }
        provenance = {
            "git": GIT,
            "task": {**TASK, **(task or {})},
            "energy": energy,
            "hardware": {"cpu": "x"},
        }
        started = f"2026-01-0{seed + 1}T00:00:00+00:00"
        (path / "provenance.json").write_text(json.dumps({**provenance, "started": started, "versions": {}}))
        (path / "artifacts" / "summary.json").write_text(json.dumps({"parameters": 10 + seed}))
        return path

    return make


@pytest.fixture
def make_card():
    """`make_card(tier, contender=[values], ...)`; seeds count from 0."""

    def make(tier="paper", paired=True, comparable=True, plan="toy", seconds=60.0, joules=None, **contenders):
        rows = [
            Row(
                name,
                name,
                "digits",
                "test/error",
                "%",
                dict(enumerate(values)),
                {},
                [10],
                {},
                paired,
                comparable,
            )
            for name, values in contenders.items()
        ]
        data = {"task": "digits", "digest": "d1", "comparable": comparable, "why": "a lossy copy"}
        energy = {"runs": {}, "joules": joules, "source": "RAPL" if joules else None, "reason": "none told"}
        provenance = {
            "data": [data],
            "config": {"digest": "c0ffee", "stages": {}},
            "commits": [{**GIT, "runs": 3}],
            "versions": [],
            "hardware": [],
            "started": None,
            "wall": {"runs": {}, "sum": seconds},
            "energy": energy,
            "command": f"metalearn replicate {plan}",
        }
        seeds = list(range(max(map(len, contenders.values()), default=0)))
        return Card(plan, tier, "Toy", "test/error", "min", seeds, {"finished": 3}, rows, [], provenance)

    return make


@pytest.fixture
def make_entry():
    """`make_entry(value=..., over=[...], ...)`: a published row of the contender `ours` of the plan `toy`."""

    def make(value=5.0, spread=None, goal="min", reading=None, **row):
        row = {"plan": "toy", "contender": "ours", **row}
        options = RowOptions(value, spread, **row)
        scale = "published" if reading is None else "reading"
        table = TableOptions("a table", "test/error", "%", goal, scale, {"the row": options}, reading)
        paper = PaperOptions("arXiv:0", "A paper", {"table1": table})
        return Entry("toys", paper, "table1", table, "the row", options)

    return make
