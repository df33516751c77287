"""A sweep goes on where it was broken off: what is done is skipped, what failed is tried again."""

import pytest

from metalearn.registry import UserError
from metalearn.sweep import engine
from metalearn.train.lock import Lock

RATES = "method.learning_rate=0.1,0.01,0.001"


def test_what_is_done_is_not_run_again(launch):
    first = launch(RATES, "seed=0,1")
    assert len({job.folder for job in launch.started}) == len(launch.started) == 6

    again = launch("seed=0,1", RATES.replace("0.1,", "1e-1,"))  # the same, written differently
    assert launch.started == []
    assert again == first
    assert first[0]["overrides"] == ["method.learning_rate=0.01"]
    assert first[0]["value"] == pytest.approx(1 / 27 + 0.005)
    assert first[0]["deviation"] == pytest.approx(0.01 / 2**0.5)


def test_what_was_interrupted_goes_on_and_the_rest_follows(launch):
    with pytest.raises(UserError, match="the same command goes on") as stopped:
        launch(RATES, fault=lambda *_: "kill" if len(launch.started) == 3 else None, width=2)
    assert stopped.value.exit_code == 130
    done = {job.folder for job in launch.started[:1]}

    trials = launch(RATES, width=2)
    assert {job.folder for job in launch.started}.isdisjoint(done)
    assert [trial["state"] for trial in trials] == ["finished"] * 3


def test_a_failed_run_is_retried_in_the_launch_then_by_the_next_one(launch):
    def broken(job, _):
        return "failed" if "method.learning_rate=0.1" in job.overrides else None

    with pytest.raises(UserError) as failed:
        launch(RATES, "sweep.retries=2", fault=broken)
    assert failed.value.exit_code == 1
    assert "1 jobs of the sweep failed" in str(failed.value)
    assert "method.learning_rate=0.1 seed=0: for a test" in str(failed.value)
    assert len(launch.started) == 3 + 2
    assert launch.summary["trials"][-1]["state"] == "failed"

    launch(RATES, "sweep.retries=2")
    assert len(launch.started) == 1


@pytest.mark.slow
def test_a_preempted_run_costs_no_retry_while_it_gets_on(launch):
    trials = launch(
        RATES, "sweep.retries=0", fault=lambda _, attempt: "interrupted" if attempt == 1 else None
    )
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    assert len(launch.started) == 6


@pytest.mark.slow
def test_a_diverged_trial_is_the_worst_and_is_not_repeated(launch):
    def bad(job, _):
        return "diverged" if "method.learning_rate=0.01" in job.overrides else None

    trials = launch(RATES, fault=bad)
    assert trials[-1]["overrides"] == ["method.learning_rate=0.01"]
    assert (trials[-1]["state"], trials[-1]["value"]) == ("diverged", None)
    launch(RATES)
    assert launch.started == []


@pytest.mark.slow
def test_a_changed_definition_under_the_same_name_is_refused_with_the_difference(launch):
    launch(RATES, "sweep.name=mine")
    with pytest.raises(UserError, match=r"swept\.method\.learning_rate 0.1,0.01,0.001 -> 0.1,0.2") as refused:
        launch("method.learning_rate=0.1,0.2", "sweep.name=mine")
    assert "another sweep.name" in str(refused.value)
    with pytest.raises(UserError, match=r"train\.steps=5"):
        launch(RATES, "sweep.name=mine", "train.steps=5")

    launch(RATES, "sweep.name=mine", "sweep.seeds=[0,3]", "train.minutes=9", "log=none")  # it may grow
    assert [job.id[-5:] for job in launch.started] == ["seed3"] * 3


@pytest.mark.slow
def test_hyperband_goes_on_within_a_rung_as_if_it_never_broke(launch, tmp_path):
    bands = ["sweep=hyperband", "sweep.minimum=3", "method.learning_rate=tag(log,interval(1e-4,1))"]
    bands += ["sweep.seeds=[0,1]"]
    whole = type(launch)(tmp_path / "whole")
    expected = whole(*bands, width=3)
    assert len(whole.started) == 2 * (9 + 3 + 1 + 5 + 1 + 3)
    assert expected[0]["step"] == 27
    assert expected[0]["value"] == min(t["value"] for t in expected if t["step"] == 27)

    for jobs in (9, 12, 15):
        with pytest.raises(UserError, match="goes on"):
            launch(*bands, fault=lambda *_: "kill" if len(launch.started) == jobs else None, width=3)  # noqa: B023
        assert sum(t["value"] is not None for t in launch.summary["trials"]) > 0
    trials = launch(*bands, width=3)
    assert trials == expected


@pytest.mark.slow
def test_one_launch_at_a_time(launch):
    launch(RATES)
    lock = Lock(launch.place)
    with pytest.raises(UserError, match=r"process \d+ on .* is at this sweep"):
        launch(RATES)
    lock.release()


@pytest.mark.slow
def test_the_tables_are_there_while_it_runs(launch, monkeypatch):
    monkeypatch.setattr(engine, "SAVED_EVERY", 0.0)
    seen = []

    def look(*_):
        seen.append((launch.place / "summary.md").exists() and len(launch.summary["trials"]))

    launch(RATES, "seed=0,1", fault=look)
    assert seen == [False, 1, 1, 2, 2, 3]
    table = (launch.place / "summary.csv").read_text().splitlines()
    assert table[0] == "trial,id,seed,method.learning_rate,state,value,step,seconds,folder,message"
    assert len(table) == 7
    assert "metalearn train task=two_moons" in (launch.place / "summary.md").read_text()


def test_a_mistake_in_the_configuration_is_not_tried_again(launch, monkeypatch):
    monkeypatch.setattr(
        "metalearn.work.Outcome.__new__.__defaults__", (True,)
    )  # what the launcher hands on is a mistake
    with pytest.raises(UserError):
        launch(RATES, "sweep.retries=2", fault=lambda *_: "failed")
    assert len(launch.started) == 3


@pytest.mark.parametrize(
    "swept", ["seed=range(1,1e9)", "method.learning_rate=range(1,1e9)", "method.learning_rate=range(1,19999)"]
)
def test_more_jobs_than_a_sweep_takes_are_refused(launch, swept):
    seeds = [] if "seed" in swept else ["seed=0,1"]
    with pytest.raises(UserError, match="20000"):
        launch(swept, *seeds)
    assert launch.started == []


@pytest.mark.parametrize(("storage", "file"), [("sqlite", "study.db"), ("journal", "study.log")])
def test_a_damaged_study_is_one_message(launch, tmp_path, storage, file):
    folder = tmp_path / "runs" / "supervised_two_moons" / "sweeps" / "damaged"
    folder.mkdir(parents=True)
    (folder / file).write_text("garbage\n")
    with pytest.raises(UserError, match=f"{file}: cannot be opened"):
        launch(
            "sweep=tpe", f"sweep.storage={storage}", "sweep.name=damaged",
            "method.learning_rate=interval(0.1,0.2)",
        )  # fmt: skip


@pytest.mark.parametrize("definition", ["3", '{"seeds": 3}', "[]"])
def test_a_damaged_definition_is_one_message(launch, tmp_path, definition):
    folder = tmp_path / "runs" / "supervised_two_moons" / "sweeps" / "damaged"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(f'{{"definition": {definition}}}')
    with pytest.raises(UserError, match="is damaged"):
        launch(RATES, "sweep.name=damaged")
