"""Cards: made of run directories, written, read, collected; the status of replications."""

import fcntl
import json
import os
import socket

import pytest

from metalearn.config import typed
from metalearn.registry import UserError
from metalearn.replicate.cards import card, library, making, status
from metalearn.replicate.cards.lines import cost, energy
from metalearn.replicate.plan import Plan, TierOptions

PLAN = {
    "name": "toy/plan",
    "family": "Toy",
    "seeds": [0, 1, 2],
    "tier": "cpu",
    "tiers": {"cpu": {}},
    "stages": {
        "control": {"recipe": "quickstart/darts_digits_retrain"},
        "ours": {"recipe": "quickstart/darts_digits_retrain", "overrides": ["network.genotype={control}/x"]},
    },
    "table": {
        "metric": "test/error", "goal": "min", "unit": "%",
        "rows": {"ours": "ours", "control": "control", "its loss": "control test/loss"},
        "claims": {"in equal steps": ["ours", "control"]},
    },
}  # fmt: skip


@pytest.fixture
def plan():
    return typed(Plan, PLAN, "replicate.")


@pytest.fixture
def runs(tmp_path, make_run):
    """Nine finished runs of 30 s, in two stages; `ours` names the control's folder."""

    def make(folder=tmp_path / "runs", **options):
        for seed in range(3):
            for stage, value in (("ours", 4.0), ("control", 6.0)):
                network = {
                    "genotype": f"{folder}/toy/plan/cpu/control_seed{seed}/x.json",
                    "font": "/usr/share/f.ttf",
                }
                path = folder / "toy" / "plan" / "cpu" / f"{stage}_seed{seed}"
                make_run(path, seed, value + 0.1 * seed, **{"network": network, **options})
        return folder

    return make


def test_a_card_holds_rows_claims_and_where_they_come_from(plan, runs):
    made = making.of_runs(plan, runs(), ["data_dir=/secret", "train.x=/a/b.txt"], {"ours": ["valid/error"]})

    assert (made.plan, made.tier, made.seeds, made.runs) == ("toy/plan", "cpu", [0, 1, 2], {"finished": 6})
    ours, _, loss = made.rows
    assert ours.values == pytest.approx({0: 4.0, 1: 4.1, 2: 4.2})
    assert ours.others == {"valid/error": {0: 9.0, 1: 9.0, 2: 9.0}}, (
        "of the step that was tested, not the last"
    )
    assert (ours.parameters, ours.seconds) == ([10, 11, 12], {0: 30.0, 1: 30.0, 2: 30.0})
    assert made.values("its loss", "test/error") == loss.values == pytest.approx({0: 0.6, 1: 0.61, 2: 0.62})
    assert made.values("control", "test/accuracy") == {}
    (claim,) = made.claims
    assert (claim.verdict, claim.test, claim.seeds, claim.confidence) == ("better", "paired", [0, 1, 2], 0.95)
    assert (claim.difference, claim.half_width) == pytest.approx((2.0, 0.0), abs=1e-12)
    assert "in equal steps" in claim.statement
    made_with = made.provenance
    assert made_with["data"][0] == {
        "task": "digits", "digest": "d1", "from": "embedded", "source": "UCI", "licence": None,
        "comparable": True, "why": None,
    }  # fmt: skip
    assert made_with["commits"] == [{"commit": "0123456789abcdef", "dirty": False, "runs": 6}]
    assert (made_with["wall"]["sum"], made_with["wall"]["runs"]["ours_seed1"]) == (180.0, 30.0)
    assert made_with["started"]["last"].startswith("2026-01-03")
    assert made_with["energy"] == {"runs": {}, "joules": None, "source": None, "reason": "none told"}
    assert made_with["command"] == "metalearn replicate toy/plan --seeds 0,1,2 tier=cpu train.x=b.txt"


def test_the_configuration_is_the_same_wherever_it_ran_and_no_card_names_a_folder(plan, runs, tmp_path):
    here = making.of_runs(plan, runs())
    there = making.of_runs(plan, runs(tmp_path / "elsewhere"))
    other = making.of_runs(plan, runs(tmp_path / "third", network={"cells": 9}))
    assert here.provenance["config"] == there.provenance["config"]
    assert here.provenance["config"]["digest"] != other.provenance["config"]["digest"]
    card.write(here, tmp_path / "card.json")
    assert str(tmp_path) not in (tmp_path / "card.json").read_text()


def test_energy_is_the_sum_of_all_runs_or_none(plan, runs, tmp_path):
    folder = runs(tmp_path / "all", joules=7200.0)
    told = making.of_runs(plan, folder)
    assert told.joules == 6 * 7200
    assert "whole devices" in told.provenance["energy"]["source"]
    assert cost(told) == "3 min 0 s, 12 Wh"
    (folder / "toy/plan/cpu/ours_seed1/timing.jsonl").write_text('{"step": 3, "seconds": 30.0}\n')
    some = making.of_runs(plan, folder)
    assert some.joules is None
    assert "5 of 6 runs told theirs" in some.provenance["energy"]["reason"]
    assert [energy(joules) for joules in (12.5, 7.2e3, 7.2e6)] == ["12.5 J", "2 Wh", "2 kWh"]


def test_unfinished_runs_count_in_no_row(plan, runs):
    folder = runs()
    status_file = folder / "toy/plan/cpu/ours_seed2/status.json"
    status_file.write_text(json.dumps({"state": "diverged", "step": 3}))
    made = making.of_runs(plan, folder)
    assert (made.runs, made.finished) == ({"finished": 5, "diverged": 1}, False)
    assert list(made.rows[0].values) == [0, 1]
    assert "ours_seed2" not in made.provenance["wall"]["runs"]


def test_what_was_written_is_read(plan, runs, tmp_path):
    made = making.of_runs(plan, runs(joules=5.0), (), {"ours": ["valid/error"]})
    path = tmp_path / "deep" / "card.json"
    card.write(made, path)
    assert card.read(path) == made
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "later": 1}))
    assert card.read(path) == made, "what a later version adds is left out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, r"card\.json: is a card of format 0, this metalearn reads format 1; make it again"),
        ({"format": None}, "of format None"),
        ({"rows": [{}]}, "is a damaged card"),
        ({"claims": None}, "is a damaged card"),
        ({"provenance": {}}, r"is a damaged card \(KeyError: 'data'\); make it again"),
    ],
)
def test_another_format_or_a_damaged_card_is_one_message(make_card, tmp_path, change, message):
    path = tmp_path / "card.json"
    card.write(make_card(ours=[1.0]), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        card.read(path)
    path.write_text("[1, 2")
    with pytest.raises(UserError, match="is no card that can be read"):
        card.read(path)


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A checkout that cards are collected in."""
    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    monkeypatch.setattr(library, "ROOT", root)
    monkeypatch.setattr(library, "COLLECTED", root / "cards")
    return root


def test_cards_are_collected_and_not_replaced_by_lesser_ones(checkout, plan, runs, monkeypatch):
    folder = runs()
    monkeypatch.setattr(library, "load", lambda *_: [plan])
    assert list(library.collect(["toy/plan"], "cpu", folder, False)) == ["collected cards/toy_plan__cpu.json"]
    plan.seeds = [0, 1]
    said = list(library.collect(["toy/plan"], "cpu", folder, False))
    assert said == [
        "left out toy/plan: ours has 2 seeds, the card there 3; --force replaces the card that is there"
    ]
    assert len(library.collected(checkout / "cards")[0].rows[0].values) == 3
    assert list(library.collect(["toy/plan"], "cpu", folder, True)) == ["collected cards/toy_plan__cpu.json"]
    assert len(library.collected(checkout / "cards")[0].rows[0].values) == 2
    plan.seeds = [0, 1, 2, 3]
    assert list(library.collect(["toy/plan"], "cpu", folder, False)) == [
        "left out toy/plan: 6 of 8 runs finished; --force takes it as it is"
    ]
    (checkout / "pyproject.toml").unlink()
    with pytest.raises(UserError, match="is no checkout"):
        list(library.collect([], None, folder, False))


def test_what_a_replication_left_is_collected_but_for_smoke(checkout, plan, runs, monkeypatch):
    folder = runs()
    monkeypatch.setattr(library, "load", lambda *_: [plan])
    library.begin(plan, ["train.x=1"], folder)
    library.write(plan, ["train.x=1"], folder)
    assert [one.file for one in library.under(folder)] == ["toy_plan__cpu.json"]
    for names in ([], ["toy/plan"]):
        assert list(library.collect(names, None, folder, False)) == [
            "left out toy/plan: run with train.x=1, which is not the plan; --force takes it"
        ]
        assert list(library.collect(names, None, folder, True)) == ["collected cards/toy_plan__cpu.json"]
        assert library.collected(checkout / "cards")[0].provenance["command"].endswith("train.x=1")
    plan.tier = "smoke"
    library.begin(plan, [], folder)
    assert len(list(library.collect([], None, folder, True))) == 1
    assert len(list(library.collect([], "smoke", folder, True))) == 1


def test_of_two_cards_the_fuller_is_shown(make_card):
    old, new = make_card("cpu", ours=[1.0, 2.0, 3.0]), make_card("cpu", ours=[4.0])
    assert library.by_plan([old], [new])["toy"]["cpu"] is old
    assert library.by_plan([new], [old])["toy"]["cpu"] is old
    again = make_card("cpu", ours=[7.0, 7.0, 7.0])
    assert library.by_plan([old], [again])["toy"]["cpu"] is again
    other = make_card("cpu", ours=[7.0, 7.0, 7.0, 7.0])
    other.provenance["command"] += " tier=cpu train.steps=1"
    assert library.by_plan([old], [other])["toy"]["cpu"] is old, "the plan's own goes before"


def test_status_tells_of_every_state_and_touches_nothing(plan, runs, capsys):
    folder = runs()
    library.begin(plan, [], folder)
    home = folder / "toy/plan/cpu"
    for name, state in (("ours_seed0", "failed"), ("ours_seed1", "running"), ("ours_seed2", "running")):
        (home / name / "status.json").write_text(json.dumps({"state": state, "step": 40, "message": "why"}))
    (home / "control_seed0" / "run.yaml").unlink()
    (home / "control_seed1" / "run.yaml").write_text("train: [")
    lock = home / "ours_seed1" / "lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    held = lock.open()
    fcntl.flock(held, fcntl.LOCK_EX)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}

    status.show([], folder, False)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "toy/plan, tier=cpu: 6 runs, 1 not started, 1 unreadable, 1 finished, 1 failed, 1 running, 1 crashed"
    )
    assert lines[1].startswith("  control_seed1 · unreadable")
    assert lines[2:] == [
        "  ours_seed0 · failed · step 40 of 100: why",
        "  ours_seed1 · running · step 60 of 100 · about 20 s left: why",
        "  ours_seed2 · crashed · step 40 of 100: why",
    ]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")} == before
    status.show(["toy/plan"], folder, True)
    (told,) = json.loads(capsys.readouterr().out)
    assert told["runs"][4] == {
        "name": "ours_seed1", "state": "running", "step": 60, "steps": 100, "left": 20.0, "message": "why"
    }  # fmt: skip
    held.close()
    with pytest.raises(UserError, match="no replication of other was begun under"):
        status.show(["other"], folder, False)


def test_a_budget_of_minutes_ends_earlier():
    row = {"step": 10, "seconds": 50.0}
    assert status._left(row, 100, None) == 450.0
    assert status._left(row, 100, 2.0) == 70.0
    assert status._left({}, 100, 2.0) is None


def test_a_torn_last_row_is_not_the_last(tmp_path):
    path = tmp_path / "timing.jsonl"
    path.write_text('{"step": 1, "seconds": 1.0}\n{"step": 2, "seconds": 2.0}\n{"step": 3, "sec')
    assert status._last_row(path) == {"step": 2, "seconds": 2.0}
    path.write_text("x" * 9000)
    assert status._last_row(path) == {}


def test_an_older_replication_is_known_by_its_report(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(library, "options", lambda _: ["toy/plan"])
    monkeypatch.setattr(library, "load", lambda *_: [plan])
    (tmp_path / "toy/plan/cpu").mkdir(parents=True)
    (tmp_path / "toy/plan/cpu/report.md").touch()
    (found,) = library.begun(tmp_path)
    assert (found.plan, found.tier, len(found.places)) == ("toy/plan", "cpu", 6)
    assert status.standing(found.places[0]).state == "not started"
    (tmp_path / "toy/plan/cpu/replication.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        library.begun(tmp_path)


def test_a_replication_leaves_its_card_also_when_it_is_stopped(monkeypatch, plan, runs):
    from metalearn.replicate import command

    folder = runs()
    plan.tiers = {"cpu": TierOptions()}

    def stopped(*_):
        raise UserError("stopped")

    monkeypatch.setattr(command, "load", lambda *_: [plan])
    monkeypatch.setattr(command, "_checked", lambda *_: [])
    monkeypatch.setattr(command, "run_all", stopped)
    with pytest.raises(UserError, match="stopped"):
        command.replicate(["toy/plan"], [], None, 1, folder)
    assert card.read(folder / "toy/plan/cpu/card.json").finished
    assert library.begun(folder)[0].places[0].folder == folder / "toy/plan/cpu/control_seed0"


@pytest.mark.slow
def test_a_replication_ends_with_a_card_and_its_status(metalearn, tmp_path):
    budget = ["train.steps=4", "train.log_every=2", "train.evaluate_every=4", "train.test=false"]
    small = [
        *budget,
        "network.units=8",
        "task.batch=2",
        "task.time=8",
        "task.evaluation_batch=200",
        "machine=cpu",
        "log=none",
    ]
    command = ["replicate", "quickstart/hyperlstm_python_docs_lstm", "--seeds", "0,1", "--jobs", "1", *small]
    assert metalearn(*command)[0] == 0
    home = tmp_path / "runs" / "quickstart" / "hyperlstm_python_docs_lstm"
    made = card.read(home / "card.json")
    (row,) = made.rows
    for seed in (0, 1):
        rows = map(json.loads, (home / f"run_seed{seed}" / "metrics.jsonl").read_text().splitlines())
        assert [values[row.metric] for values in rows if row.metric in values] == [row.values[seed]]
    assert (made.runs, made.seeds, made.finished) == ({"finished": 2}, [0, 1], True)
    assert made.seconds > 0
    assert made.provenance["energy"]["joules"] or made.provenance["energy"]["reason"]
    assert made.provenance["command"].endswith("task.evaluation_batch=200 machine=cpu")
    assert str(tmp_path) not in (home / "card.json").read_text()

    code, out, _ = metalearn("replicate", "--status")
    assert (code, out) == (0, "quickstart/hyperlstm_python_docs_lstm: 2 runs, 2 finished\n")
    assert metalearn(*command)[0] == 0
    assert card.read(home / "card.json") == made, "nothing was run again"
    code, _, err = metalearn("replicate", "--status", "train.steps=4")
    assert (code, "train.steps=4 is for runs" in err) == (2, True)
