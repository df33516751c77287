"""Reading run directories: numbers, torn files, states, groups, errors."""

import fcntl
import json
import os
import socket
import subprocess

import pytest

from metalearn import records
from metalearn.registry import UserError


def test_reads_what_the_loop_wrote(make_run):
    run = records.read(make_run("a", seed=1, test=2.5))

    assert (run.seed, run.task, run.state, run.step) == (1, "digits", "finished", 100)
    assert (run.parameters, run.seconds) == (1234, 20.0)
    assert run.metrics == ["valid/loss", "valid/error", "train/loss", "test/error", "selected/step"]
    assert run.last("test/error") == 2.5
    assert len(run.curve("valid/error")) == 6
    assert run.best("valid/error").step == 80  # it rises again after that
    assert run.last("valid/error") > run.best("valid/error").value
    assert "hydra" not in run.config


def test_best_follows_the_goal_of_the_monitored_quantity(make_run):
    run = records.read(make_run("a"))
    run.config["train"]["goal"] = "max"

    assert run.best("valid/error").step == 0
    assert run.best("valid/loss").step == 100  # not what is monitored


@pytest.mark.parametrize(
    "torn", [b'{"step": 110, "valid/er', b'{"step": 110, "valid/error": 1.0}', b"\xff\n"]
)
def test_a_torn_last_line_is_left_out(make_run, torn):
    path = make_run("a", test=None)
    whole = records.read(path).rows
    with (path / "metrics.jsonl").open("ab") as file:
        file.write(torn)

    assert records.read(path).rows == whole


def test_a_run_that_nobody_runs_has_crashed(make_run):
    path = make_run("a", state="running")
    assert records.read(path).state == "crashed"

    gone = subprocess.Popen(["true"])
    gone.wait()
    (path / "lock").write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
    assert records.read(path).state == "crashed"

    # the number lives again, yet its process does not hold the lock
    (path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    assert records.read(path).state == "crashed"

    with (path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert records.read(path).state == "running"


def test_a_run_that_has_not_written_yet(make_run):
    path = make_run("a", state="running")
    for name in ("metrics.jsonl", "timing.jsonl", "provenance.json", "artifacts/summary.json"):
        (path / name).unlink()

    run = records.read(path)

    assert (run.rows, run.seconds, run.parameters, run.comparable) == ([], None, None, True)
    with pytest.raises(UserError, match="none yet"):
        run.last("test/error")


def test_errors_name_what_is_missing(make_run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        records.read(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no run\.yaml"):
        records.read(tmp_path)
    path = make_run("a")
    with pytest.raises(UserError, match="no metric 'test/eror'; it has: test/error, "):
        records.read(path).last("test/eror")
    for name, words in (("status.json", "is broken"), ("run.yaml", "cannot be read")):
        path = make_run(f"broken_{name}")
        (path / name).write_text("{")
        with pytest.raises(UserError, match=f"{name}: {words}"):
            records.read(path)


def test_groups_are_equal_but_for_seed_and_places(make_run):
    runs = [
        records.read(make_run("a0", seed=0)),
        records.read(make_run("b0", seed=0, rate=0.2)),
        records.read(make_run("a1", seed=1)),
    ]
    runs[2].config["data_dir"] = "elsewhere"

    groups = records.group(runs)

    assert [[run.path.name for run in group] for group in groups] == [["a0", "a1"], ["b0"]]
    assert records.differing([records.learned(group[0]) for group in groups]) == ["method.learning_rate"]
