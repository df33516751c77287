"""Cadences, budgets, selection, and how a run ends that cannot go on."""

import json
import sys
import threading

import pytest
import torch
from noisy_quadratic import NoisyQuadratic, configuration, train

from metalearn.registry import UserError
from metalearn.train import console
from metalearn.train.checkpoint import load
from metalearn.train.failure import Diverged, OutOfMemory
from metalearn.train.files import read_json
from metalearn.train.log import Watch, check_state, host
from metalearn.train.rows import read_rows


class Poisoned(NoisyQuadratic):
    """From step `at` on something is not finite."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.at, self.what = at, what

    def step(self, index):
        metrics = super().step(index)
        if index + 1 >= self.at:
            if self.what == "metric":
                metrics["train/norm"] = torch.tensor(float("inf"))
            if self.what == "solver":
                metrics["hypergradient/residual"] = torch.tensor(float("nan"))
            if self.what == "state":
                self.average[2] = float("nan")
        return metrics

    def evaluate(self, split):
        metrics = super().evaluate(split)
        if self.what == split and len(self.calls) >= self.at:
            metrics[f"{split}/loss"] = torch.tensor(float("nan"))
        return metrics


@pytest.mark.parametrize(
    ("what", "at", "said", "good"),
    [
        (
            "metric",
            7,
            "step 7: train/norm is inf; the last good checkpoint is .*step_0000000005.pt of step 5",
            5,
        ),
        ("solver", 7, "step 7: hypergradient/residual is nan; .*; lower hypergradient.step", 5),
        ("metric", 1, "step 1: train/norm is inf; there is no checkpoint before it", None),
        ("state", 6, "step 8: the state's slots/1/average is not finite; .* of step 5", 5),
        ("valid", 10, "step 10: valid/loss is nan; .* of step 8", 8),
        ("test", 20, "step 20: test/loss is nan; .* of step 20", 20),
    ],
)
def test_what_is_not_finite_stops_the_run(tmp_path, what, at, said, good):
    with pytest.raises(Diverged, match=said) as stop:
        train(configuration(tmp_path / "run"), Poisoned(at, what))
    assert stop.value.exit_code == 3
    status = read_json(tmp_path / "run" / "status.json")
    assert status["state"] == "diverged"
    assert status["message"].startswith(said.split(";")[0])
    saved = [load(path) for path in (tmp_path / "run" / "checkpoints").glob("*.pt")]
    assert max((state["step"] for state in saved), default=None) == good
    for state in saved:
        check_state(state["step"], state["method"])
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_step_that_is_not_logged_is_looked_at_too(tmp_path):
    class Blinking(NoisyQuadratic):
        def step(self, index):
            metrics = super().step(index)
            return metrics if index != 6 else {**metrics, "train/loss": torch.tensor(float("nan"))}

    with pytest.raises(Diverged, match="step 7: train/loss is nan"):
        train(configuration(tmp_path / "run", log_every=10), Blinking())


def test_an_accelerators_values_are_looked_at_late_but_named_exactly():
    """The same code as on CUDA, where `see` takes this path, on tensors of the CPU."""
    watch = Watch()
    watch._note(1, {"a": torch.tensor(1.0), "b": torch.tensor(3)})
    watch.check()
    watch._note(2, {"a": torch.tensor(1e300, dtype=torch.float64), "b": torch.tensor(float("nan"))})
    watch._note(3, {"a": torch.tensor(float("inf")), "b": torch.tensor(1.0)})
    with pytest.raises(Diverged, match="step 2: b is not finite"):
        watch.check()
    with pytest.raises(Diverged, match="step 2: b"):
        watch._note(4, {"c": torch.tensor(0.0)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_until_the_check():
    watch = Watch()
    good, bad = torch.tensor(1.0, device="cuda"), torch.tensor(float("nan"), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.see(1, {"a": good})
        watch.see(2, {"a": bad})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(Diverged, match="step 2: a"):
        watch.check()


def test_values_come_over_exactly():
    values = {"a": torch.tensor(0.1), "b": torch.tensor([7]), "c": torch.tensor(1 / 3, dtype=torch.float64)}
    assert host(values) == {"a": torch.tensor(0.1).item(), "b": 7.0, "c": 1 / 3}
    assert host({}) == {}


def test_cadences(tmp_path):
    method = NoisyQuadratic()
    run = train(
        configuration(tmp_path / "run", steps=11, log_every=3, evaluate_every=4, checkpoint_every=6), method
    )
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [3, 6, 9, 11]
    assert [row["step"] for row in rows if "valid/loss" in row] == [4, 8, 11]
    assert [row["step"] for row in rows if "test/loss" in row] == [11]
    assert method.calls == [0, 1, 2, 3, "valid", 4, 5, 6, 7, "valid", 8, 9, 10, "valid", "test"]
    assert [row["step"] for row in read_rows(run / "timing.jsonl")] == [3, 6, 9, 11]
    assert all(row["steps_per_second"] > 0 for row in read_rows(run / "timing.jsonl"))


def test_never_means_never(tmp_path):
    method = NoisyQuadratic()
    options = {"evaluate_every": 0, "checkpoint_every": 0, "test": False}
    run = train(configuration(tmp_path / "run", steps=3, **options), method)
    assert method.calls == [0, 1, 2]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_0000000003.pt"], "the last one"


class Bouncing(NoisyQuadratic):
    """Its validation loss is given; its weights tell the step."""

    def evaluate(self, split):
        losses = {2: 5.0, 4: 1.0, 6: 3.0, 8: 2.0}
        return {f"{split}/loss": torch.tensor(losses[int(self.w[0])]), f"{split}/w": self.w[0]}

    def step(self, index):
        self.w = torch.full((4,), index + 1.0)
        return {"train/loss": self.w[0]}


@pytest.mark.parametrize(("goal", "best"), [("min", 4), ("max", 2)])
def test_the_best_checkpoint_is_tested_and_handed_over(tmp_path, goal, best):
    config = configuration(tmp_path / "run", steps=8, evaluate_every=2, select="best", goal=goal)
    run = train(config, Bouncing())
    last = read_rows(run / "metrics.jsonl")[-1]
    assert (last["step"], last["selected/step"], last["test/w"]) == (8, best, best)
    assert (run / "artifacts" / "weights.txt").read_text() == repr([float(best)] * 4)


def test_the_best_is_remembered_over_a_break(tmp_path):
    class Breaking(Bouncing):
        def step(self, index):
            if index == 5:
                raise ValueError("broken off")
            return super().step(index)

    config = configuration(tmp_path / "run", steps=8, evaluate_every=2, select="best")
    with pytest.raises(ValueError, match="broken off"):
        train(config, Breaking())
    run = train(config, Bouncing())
    assert read_rows(run / "metrics.jsonl")[-1]["selected/step"] == 4


def test_a_damaged_best_is_said_and_shown_in_the_row(tmp_path, capsys):
    class Rotting(Bouncing):
        def evaluate(self, split):
            if int(self.w[0]) == 8 and split == "valid":
                (tmp_path / "run" / "checkpoints" / "best.pt").write_bytes(b"rotten")
            return super().evaluate(split)

    run = train(configuration(tmp_path / "run", steps=8, evaluate_every=2, select="best"), Rotting())
    assert read_rows(run / "metrics.jsonl")[-1]["selected/step"] == 8
    assert "no sound best checkpoint" in capsys.readouterr().err


def test_a_monitor_that_does_not_exist_names_those_that_do(tmp_path):
    with pytest.raises(UserError, match=r"got valid/eror, .*: valid/loss, valid/largest, or null"):
        train(configuration(tmp_path / "run", monitor="valid/eror"), NoisyQuadratic())
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"
    train(configuration(tmp_path / "none", monitor=None), NoisyQuadratic())
    assert not (tmp_path / "none" / "checkpoints" / "best.pt").exists()


def test_a_monitor_that_is_known_not_to_exist_is_refused_before_the_first_step(tmp_path):
    method = NoisyQuadratic()
    method.measures = ("loss", "largest")
    with pytest.raises(UserError, match=r"got valid/eror, .*: valid/loss, valid/largest, or null"):
        train(configuration(tmp_path / "run", monitor="valid/eror"), method)
    assert method.calls == []
    train(configuration(tmp_path / "part", monitor="valid/largest"), method)
    train(configuration(tmp_path / "never", monitor="valid/eror", evaluate_every=0), NoisyQuadratic())


@pytest.mark.parametrize("options", [{"monitor": None}, {"evaluate_every": 0}])
def test_selecting_the_best_needs_evaluations(tmp_path, options):
    method = NoisyQuadratic()
    with pytest.raises(UserError, match=r"train.select: got best, which needs"):
        train(configuration(tmp_path / "run", select="best", **options), method)
    assert method.calls == []


def test_a_budget_of_minutes_ends_early_and_can_be_raised(tmp_path):
    first = NoisyQuadratic(seconds=0.05)
    run = train(configuration(tmp_path / "run", minutes=0.4 / 60), first)
    status = read_json(run / "status.json")
    assert status["state"] == "finished"
    assert 0 < status["step"] < 12
    assert status["message"].startswith("after train.minutes=")
    last = read_rows(run / "metrics.jsonl")[-1]
    assert last["step"] == status["step"]
    assert "test/loss" in last

    train(configuration(tmp_path / "run", minutes=0.3 / 60), second := NoisyQuadratic())
    assert second.calls == [], "no more time, nothing to do"
    train(configuration(tmp_path / "run"), third := NoisyQuadratic())
    assert third.calls[0] == status["step"]
    assert read_json(run / "status.json") == {"state": "finished", "step": 20, "message": ""}
    rows = read_rows(run / "metrics.jsonl")
    assert sum("test/loss" in row for row in rows) == 1
    assert read_rows(run / "timing.jsonl")[-1]["seconds"] >= 0.4, "seconds add up over starts"


class Content(NoisyQuadratic):
    """Wants no more steps after the seventh, by a rule of its own."""

    def step(self, index):
        metrics = super().step(index)
        self.ended = "it is good enough at step 7" if index == 6 else ""
        return metrics


def test_a_method_may_end_its_run(tmp_path):
    method = Content()
    run = train(configuration(tmp_path / "run", log_every=5), method)
    assert method.calls == [0, 1, 2, 3, 4, "valid", 5, 6, "valid", "test"]
    assert read_json(run / "status.json") == {
        "state": "finished",
        "step": 7,
        "message": "it is good enough at step 7",
    }
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 7]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 1 TB"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_said_with_a_hint(tmp_path, error):
    class Greedy(NoisyQuadratic):
        def step(self, index):
            if index == 3:
                raise error
            return super().step(index)

    with pytest.raises(OutOfMemory, match="out of memory after step 3; lower the batch") as stop:
        train(configuration(tmp_path / "run"), Greedy())
    assert stop.value.exit_code == 1
    status = read_json(tmp_path / "run" / "status.json")
    assert (status["state"], status["step"]) == ("failed", 3)
    assert status["message"].startswith("out of memory")


def test_a_real_allocation_that_cannot_be_had(tmp_path):
    class Greedy(NoisyQuadratic):
        def step(self, index):
            torch.empty(2**50, dtype=torch.uint8)
            return super().step(index)

    with pytest.raises(OutOfMemory):
        train(configuration(tmp_path / "run"), Greedy())


def test_a_fault_of_the_code_is_not_hidden(tmp_path):
    class Faulty(NoisyQuadratic):
        def step(self, index):  # noqa: ARG002
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(configuration(tmp_path / "run"), Faulty())
    status = read_json(tmp_path / "run" / "status.json")
    assert status == {"state": "failed", "step": 0, "message": "RuntimeError: shapes differ"}


def test_outside_the_main_thread_it_runs_without_signals(tmp_path):
    thread = threading.Thread(target=train, args=(configuration(tmp_path / "run"), NoisyQuadratic()))
    thread.start()
    thread.join()
    assert read_json(tmp_path / "run" / "status.json")["state"] == "finished"


def test_lines_of_progress_without_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    config = configuration(tmp_path / "run", steps=3)
    config.log.progress = True
    train(config, NoisyQuadratic())
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert len(lines) == 3
    assert lines[1].startswith("metalearn: step 2/3, ")
    assert " left, train/loss " in lines[1]


def test_a_bar_on_a_terminal_and_silence_on_request(tmp_path, capsys, monkeypatch):
    config = configuration(tmp_path / "quiet", steps=3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(config, NoisyQuadratic())
    assert capsys.readouterr().err == ""
    config = configuration(tmp_path / "bar", steps=3)
    config.log.progress = True
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(config, NoisyQuadratic())
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "step/s" in shown
