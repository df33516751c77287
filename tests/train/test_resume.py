"""A run that was broken off and started again writes the same metrics.jsonl as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from noisy_quadratic import NoisyQuadratic, configuration, train

from metalearn.registry import UserError
from metalearn.train.files import read_json
from metalearn.train.rows import read_rows

PROGRAM = str(Path(__file__).with_name("noisy_quadratic.py"))


class PowerCutError(Exception):
    """Nothing below the loop knows it, so nothing is saved."""


class Breaking(NoisyQuadratic):
    """Breaks off before a call: of step `index`, or of evaluate(split)."""

    def __init__(self, at: int | str) -> None:
        super().__init__()
        self._at = at

    def step(self, index):
        self._break(index)
        return super().step(index)

    def evaluate(self, split):
        self._break(split)
        return super().evaluate(split)

    def artifacts(self, folder):
        self._break("artifacts")
        super().artifacts(folder)

    def _break(self, what):
        if what == self._at:
            raise PowerCutError


@pytest.fixture
def unbroken(tmp_path) -> bytes:
    return _bytes(train(configuration(tmp_path / "unbroken"), NoisyQuadratic()))


@pytest.mark.parametrize("at", [0, 1, 4, 5, 11, 19, "valid", "test", "artifacts"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_broken_run_goes_on_bitwise(tmp_path, at, select):
    unbroken = _bytes(train(configuration(tmp_path / "unbroken", select=select), NoisyQuadratic()))
    config = configuration(tmp_path / "broken", select=select)
    with pytest.raises(PowerCutError):
        train(config, Breaking(at))
    assert read_json(tmp_path / "broken" / "status.json")["state"] == "failed"

    second = NoisyQuadratic()
    run = train(config, second)

    assert _bytes(run) == unbroken
    artifact = (run / "artifacts" / "weights.txt").read_text()
    assert artifact == (tmp_path / "unbroken" / "artifacts" / "weights.txt").read_text()
    assert read_json(run / "status.json")["state"] == "finished"
    expected = {0: 0, 1: 0, 4: 4, 5: 5, 11: 8, 19: 16, "valid": 4, "test": None, "artifacts": None}[at]
    first = second.calls[0]
    assert (first if isinstance(first, int) else None) == expected, "it goes on where the checkpoint is"


def test_a_finished_run_does_nothing(tmp_path, capsys):
    config = configuration(tmp_path / "run")
    train(config, NoisyQuadratic())
    again = NoisyQuadratic()
    train(config, again)
    assert again.calls == []
    assert "finished at step 20, nothing to do" in capsys.readouterr().err


def test_rows_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path, unbroken):
    config = configuration(tmp_path / "run")
    with pytest.raises(PowerCutError):
        train(config, Breaking(15))
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert read_rows(metrics)[-1]["step"] == 15
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:-7])
    assert read_rows(metrics)[-1]["step"] < 15 or "valid/loss" not in read_rows(metrics)[-1]
    timing = tmp_path / "run" / "timing.jsonl"
    timing.write_bytes(timing.read_bytes()[:-3])
    assert _bytes(train(config, NoisyQuadratic())) == unbroken
    assert [row["step"] for row in read_rows(timing)] == list(range(1, 21))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGUSR1")]


@pytest.mark.parametrize("name", ["SIGTERM", *SLOW])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path, unbroken, name):
    run = tmp_path / "run"
    process = _start(run, 0.05)
    _wait_for_rows(run, 3)
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=20)

    assert process.returncode == 128 + getattr(signal, name)
    status = read_json(run / "status.json")
    assert status["state"] == "interrupted"
    assert status["message"] == f"{name} after step {status['step']}"
    assert f"to go on: metalearn train --config-dir {run} run_dir={run}\n" in stderr
    assert (run / "checkpoints" / f"step_{status['step']:010d}.pt").exists()
    second = NoisyQuadratic()
    assert _bytes(train(configuration(run), second)) == unbroken
    assert status["step"] in second.calls or status["step"] == 20


def test_a_signal_in_an_evaluation_is_honoured_after_it(tmp_path, unbroken):
    class Signalled(NoisyQuadratic):
        def evaluate(self, split):
            if self.calls[-1] == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(split)

    first, before = Signalled(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        train(configuration(tmp_path / "run"), first)
    assert stop.value.code == 143
    assert first.calls[-2:] == [9, "valid"]
    assert signal.getsignal(signal.SIGTERM) == before, "the handlers are put back"
    assert _bytes(train(configuration(tmp_path / "run"), NoisyQuadratic())) == unbroken


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_step_comes_before_its_evaluation(tmp_path, unbroken, number):
    class Signalled(NoisyQuadratic):
        def step(self, index):
            if index == 9:
                os.kill(os.getpid(), number)
            return super().step(index)

    with pytest.raises(SystemExit) as stop:
        train(configuration(tmp_path / "run"), Signalled())
    assert stop.value.code == 128 + number
    second = NoisyQuadratic()
    assert _bytes(train(configuration(tmp_path / "run"), second)) == unbroken
    assert second.calls[:2] == ["valid", 10]


def test_a_second_signal_exits_at_once(tmp_path):
    class Signalled(NoisyQuadratic):
        def step(self, index):
            if index == 9:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("the second signal did not end the step")
            return super().step(index)

    with pytest.raises(SystemExit) as stop:
        train(configuration(tmp_path / "run"), Signalled())
    assert stop.value.code == 143
    assert not (tmp_path / "run" / "checkpoints" / "step_0000000010.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["checkpoint_every=1", "evaluate_every=2"]])
def test_kill_9_at_random_moments(tmp_path, options):
    """Killed again and again, at a moment that is anywhere in a run, then run to the end."""
    changes = {key: int(value) for key, value in (option.split("=") for option in options)}
    unbroken = _bytes(train(configuration(tmp_path / "unbroken", steps=60, **changes), NoisyQuadratic()))
    run, moments = tmp_path / "run", random.Random(0)
    killed = 0
    for _ in range(5):
        process = _start(run, 0.01, "steps=60", *options)
        _wait_for_start(run, process)
        try:
            process.wait(moments.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        if process.returncode == 0:
            break
    assert killed >= 2, "the test must kill something"
    train(configuration(run, steps=60, **changes), NoisyQuadratic())
    assert _bytes(run) == unbroken
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.slow
def test_two_runs_one_directory(tmp_path):
    run = tmp_path / "run"
    process = _start(run, 0.2)
    _wait_for_rows(run, 1)
    with pytest.raises(UserError, match=rf"process {process.pid} on .* is running"):
        train(configuration(run), NoisyQuadratic())
    process.kill()
    process.wait()
    assert (run / "lock").read_text(), "kill -9 leaves the lock behind"
    train(configuration(run), NoisyQuadratic())
    assert (run / "lock").read_text() == ""


def _start(run: Path, seconds: float, *changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, PROGRAM, str(run), str(seconds), *changes],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _wait_for_rows(run: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(read_rows(run / "metrics.jsonl")) < count:
        assert time.monotonic() < deadline, "no rows came"
        time.sleep(0.01)


def _wait_for_start(run: Path, process: subprocess.Popen[str]) -> None:
    """Until the process holds the lock: what comes before is Python's own start."""
    deadline = time.monotonic() + 60
    while str(process.pid) not in (run / "lock").read_text() if (run / "lock").exists() else True:
        assert time.monotonic() < deadline, "it did not start"
        if process.poll() is not None:
            return
        time.sleep(0.005)


def _bytes(run: Path) -> bytes:
    return (run / "metrics.jsonl").read_bytes()
