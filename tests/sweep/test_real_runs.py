"""Sweeps of real runs in real processes: killed, finished by the same command, stopped at rungs, promoted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = ["task=two_moons", "network=mlp", "machine=cpu", "log=none", "train.test=false", "launcher.jobs=1"]
RUN += ["train.evaluate_every=10", "train.checkpoint_every=20"]
SPACE = "method.learning_rate=tag(log,interval(1e-3,1))"


def _start(folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "metalearn", "train", "-m", *RUN, *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _end(folder: Path, *arguments: str) -> str:
    ran = _start(folder, *arguments)
    out, _ = ran.communicate(timeout=400)
    assert ran.returncode == 0, out
    return out


def _results(folder: Path) -> dict[str, bytes]:
    found = {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/sweeps/*/*/metrics.jsonl")}
    (summary,) = folder.glob("runs/*/sweeps/*/summary.json")
    trials = json.loads(summary.read_text())["trials"]
    return {**found, "table": json.dumps([(t["id"], t["value"], t["state"]) for t in trials]).encode()}


def _finished(folder: Path) -> int:
    states = [path.read_text() for path in folder.glob("runs/*/sweeps/*/*/status.json")]
    return sum('"finished"' in state for state in states)


@pytest.mark.slow
def test_a_sweep_killed_halfway_ends_as_if_it_never_was(tmp_path):
    sweep = ["sweep=tpe", "sweep.trials=4", "sweep.population=2", "train.steps=60", SPACE]
    killed = _start(tmp_path / "killed", *sweep)
    while _finished(tmp_path / "killed") < 1 and killed.poll() is None:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    before = _finished(tmp_path / "killed")
    assert 1 <= before < 4
    _free(tmp_path / "killed")

    out = _end(tmp_path / "killed", *sweep)
    _end(tmp_path / "whole", *sweep)
    assert _results(tmp_path / "killed") == _results(tmp_path / "whole")
    assert out.count("· finished") == 4 - before
    assert len(_results(tmp_path / "whole")) == 4 + 1


def _free(folder: Path) -> None:
    """Wait until the worker has noticed that its parent is gone, and has ended."""
    for path in folder.glob("runs/*/sweeps/*/*/lock"):
        for _ in range(400):
            text = path.read_text()
            if not text or not Path(f"/proc/{json.loads(text)['pid']}").exists():
                break
            time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_of_every_run_and_the_same_command_goes_on(tmp_path):
    sweep = ["train.steps=3000", "method.learning_rate=0.1,0.01"]
    stopped = _start(tmp_path / "s", *sweep)
    while not list(tmp_path.glob("s/runs/*/sweeps/*/*/checkpoints/*.pt")) and stopped.poll() is None:
        time.sleep(0.05)
    stopped.terminate()
    out, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 143, out
    assert "the same command goes on from there" in out
    (status,) = tmp_path.glob("s/runs/*/sweeps/*/*/status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
    assert json.loads(status.read_text())["step"] > 0


@pytest.mark.slow
def test_a_promoted_run_is_the_unbroken_run(tmp_path):
    halving = ["sweep=halving", "sweep.population=4", "sweep.eta=2", "sweep.rungs=3", "train.steps=40", SPACE]
    out = _end(tmp_path / "halving", *halving)
    (summary,) = tmp_path.glob("halving/runs/*/sweeps/*/summary.json")
    trials = json.loads(summary.read_text())["trials"]
    assert sorted((t["step"], t["state"]) for t in trials) == [
        (10, "stopped"), (10, "stopped"), (20, "stopped"), (40, "finished"),
    ]  # fmt: skip
    best = trials[0]
    assert best["state"] == "finished"
    assert f"best trial again: metalearn train {RUN[0]}" in out

    command = [sys.executable, "-m", "metalearn", "train", *RUN[:5], *RUN[6:], "train.steps=40"]
    command += [*best["overrides"], "run_dir=whole", "seed=0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=200)
    promoted = summary.parent / f"{best['id']}_seed0" / "metrics.jsonl"
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == promoted.read_bytes()
