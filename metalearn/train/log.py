"""The only place where numbers leave the device: rows of metrics, and the watch for what is not finite."""

import contextlib
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from metalearn.config import Config
from metalearn.task import Metrics
from metalearn.train import energy
from metalearn.train.checkpoint import tensors
from metalearn.train.console import Progress
from metalearn.train.failure import Diverged
from metalearn.train.rows import RowFile, read_rows
from metalearn.train.run_directory import RunDirectory
from metalearn.train.tracking import Tracker

Row = dict[str, Any]


def host(metrics: Metrics) -> dict[str, float]:
    """Metrics as floats, by one transfer."""
    if not metrics:
        return {}
    return dict(zip(metrics, _stack(metrics).tolist(), strict=True))


class Watch:
    """Looks at every step's metrics for NaN and infinity.

    On the CPU at once. On an accelerator looking means waiting for it, so the first bad step is noted there
    and read by `check`, which the loop calls before it logs, evaluates or checkpoints.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._first_bad: Tensor | None = None  # [metric], the step of the first bad value or 0

    def see(self, step: int, metrics: Metrics) -> None:
        """Take a step's metrics. Raises Diverged."""
        if any(value.device.type != "cpu" for value in metrics.values()):
            self._note(step, metrics)
            return
        for name, value in metrics.items():
            number = value.item()
            if not math.isfinite(number):
                raise _diverged(step, name, number)

    def check(self) -> None:
        """Read what was noted. Raises Diverged."""
        if self._first_bad is None:
            return
        steps = self._first_bad.tolist()
        bad = [(step, name) for step, name in zip(steps, self._names, strict=True) if step]
        if bad:
            raise _diverged(*min(bad), None)

    def _note(self, step: int, metrics: Metrics) -> None:
        values = _stack(metrics)
        if self._names != list(metrics):
            self.check()
            self._names = list(metrics)
            self._first_bad = torch.zeros(len(metrics), dtype=torch.int64, device=values.device)
        assert self._first_bad is not None
        new = ~torch.isfinite(values) & (self._first_bad == 0)
        self._first_bad = torch.where(new, step, self._first_bad)


def check_state(step: int, state: dict[str, Any]) -> None:
    """Refuse to checkpoint a state that holds NaN or infinity. Raises Diverged."""
    floating = [(name, part) for name, part in tensors(state) if part.is_floating_point() and part.numel()]
    if not floating:
        return
    device = next((part.device for _, part in floating if part.device.type != "cpu"), floating[0][1].device)
    sound = torch.stack([torch.isfinite(part.detach()).all().to(device) for _, part in floating]).tolist()
    for (name, _), good in zip(floating, sound, strict=True):
        if not good:
            raise _diverged(step, f"the state's {name}", None)


def _stack(metrics: Metrics) -> Tensor:
    """Scalars as one float64 vector, on the accelerator if one of them is there."""
    values = [value.detach() for value in metrics.values()]
    device = next((value.device for value in values if value.device.type != "cpu"), values[0].device)
    return torch.stack([value.to(device, torch.float64).reshape(()) for value in values])


def _diverged(step: int, what: str, value: float | None) -> Diverged:
    return Diverged(f"step {step}: {what} is {'not finite' if value is None else value}")


class Log:
    """Where rows go: metrics.jsonl first, and from it W&B and the terminal. Times go to timing.jsonl.

    A row is {"step": steps done, "split/quantity": value, ...}.
    """

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self._config, self._directory = config, directory
        self._stack = contextlib.ExitStack()
        self._metrics = RowFile(directory.path / "metrics.jsonl")
        self._timing = RowFile(directory.path / "timing.jsonl")

    def start(self, step: int, rows: int) -> bool:
        """Begin at a checkpoint's step: drop what an interrupted run wrote after it.

        Returns False if rows that the checkpoint counts are missing.
        """
        complete = self._metrics.count >= rows
        self._metrics.cut(rows)
        times = read_rows(self._timing.path)
        self._timing.cut_after(step)
        self._joules_before: float | None = (
            times[-1].get("joules") if times else 0.0
        )  # with those of steps now lost
        on_gpu = self._config.machine.device != "cpu" and torch.cuda.is_available()
        self._meter = self._stack.enter_context(energy.meter(energy.gpus() if on_gpu else []))
        self._directory.record(energy=self._meter.note)
        train = self._config.train
        self._tracker = self._stack.enter_context(Tracker(self._config, self._directory))
        self._progress = self._stack.enter_context(Progress(train.steps, step, self._config.log.progress))
        self._since, self._since_step = time.perf_counter(), step
        return complete

    def synced_rows(self) -> int:
        """Bring metrics.jsonl to the disk; how many rows it has."""
        self._metrics.sync()
        return self._metrics.count

    def step_done(self, step: int) -> None:
        """Move the progress on."""
        self._progress.advance(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a row of finite values. Raises Diverged."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise _diverged(step, name, value)
        row = {"step": step, **values}
        self._metrics.append(row)
        self._tracker.log(row)
        self._progress.show(row)

    def write_time(self, step: int, seconds: float) -> None:
        """Append a row of times: `seconds` of the run without its pauses, and the rate since the last row.

        Where the device tells energy, that of all starts so far, in J; it is left out if any could not tell.
        """
        now = time.perf_counter()
        rate = (step - self._since_step) / max(now - self._since, 1e-9)
        self._since, self._since_step = now, step
        times = {"step": step, "seconds": round(seconds, 3), "steps_per_second": round(rate, 3)}
        joules, before = self._meter.joules(), self._joules_before
        told = {} if joules is None or before is None else {"joules": round(before + joules, 2)}
        self._timing.append({**times, **told})

    def upload(self, folder: Path) -> None:
        """Give W&B what the run leaves to its user."""
        self._tracker.upload(folder)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._timing.close()
        self._stack.__exit__(kind, error, trace)
