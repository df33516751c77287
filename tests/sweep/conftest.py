"""Sweeps whose runs are a formula, in this process: under test is what runs when, and what is kept."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metalearn.cli import register_all
from metalearn.sweep.command import sweep
from metalearn.sweep.executor import Executor, Job
from metalearn.work import Outcome

Fault = Callable[[Job, int], str | None]
STEPS = 27


class Formula(Executor):
    """Leaves the directory of a run whose valid/loss at step t is (log10(rate) + 2)^2 + 1/t + seed/100.

    `fault` may say how the n-th attempt at a job ends instead: failed, diverged, interrupted, or "kill".
    """

    def __init__(self, width: int, fault: Fault) -> None:
        self._width, self._fault = width, fault
        self.started: list[Job] = []
        self._running: list[Job] = []

    @property
    def width(self) -> int:
        return self._width

    def start(self, job: Job) -> None:
        assert len(self._running) < self._width
        assert job.folder not in {other.folder for other in self._running}
        self.started.append(job)
        self._running.append(job)

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        job = self._running.pop(0)
        attempt = sum(other.folder == job.folder for other in self.started)
        fault = self._fault(job, attempt)
        if fault == "kill":
            raise KeyboardInterrupt
        yield job, Outcome(train(job, fault), "for a test" if fault else "", 0.5)

    def __enter__(self) -> "Formula":
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._running:
            train(job, "interrupted")


def train(job: Job, fault: str | None) -> str:
    """Do a run, or as much of it as the fault allows; its state."""
    said = dict(line.lstrip("+").split("=", 1) for line in job.overrides)
    rate, seed = float(said["method.learning_rate"]), int(said["seed"])
    until = int(said.get("train.stop_at", STEPS))
    step = until // 2 if fault else until
    state = fault or ("finished" if until == STEPS else "stopped")
    job.folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": t, "valid/loss": (math.log10(rate) + 2) ** 2 + 1 / t + seed / 100}
        for t in range(1, step + 1)
    ]
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = [{"step": row["step"], "seconds": 0.1 * row["step"]} for row in rows]
    (job.folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in times))
    status = {"state": state, "step": step, "message": ""}
    (job.folder / "status.json").write_text(json.dumps(status))
    return state


class Launch:
    """`metalearn train -m`, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Job] = []

    def __call__(self, *arguments: str, fault: Fault = lambda *_: None, width: int = 1) -> list[dict]:
        """The trials in summary.json, best first. `started` has the jobs of this launch."""
        executor = Formula(width, fault)
        self.started = executor.started
        fixed = ["task=two_moons", "network=mlp", f"train.steps={STEPS}", "train.evaluate_every=1"]
        sweep([*fixed, f"runs={self.folder}", *arguments], build=lambda _: executor)
        return self.summary["trials"]

    @property
    def place(self) -> Path:
        """The sweep's folder."""
        (found,) = self.folder.glob("*/sweeps/*")
        return found

    @property
    def summary(self) -> dict:
        return json.loads((self.place / "summary.json").read_text())


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Launch a sweep over method.learning_rate; the best is 0.01."""
    register_all()
    return Launch(tmp_path / "runs")
