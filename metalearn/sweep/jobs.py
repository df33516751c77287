"""Where a run of a sweep stands, read from its directory."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.registry import UserError
from metalearn.sweep.definition import Searched
from metalearn.train.rows import read_rows

SETTLED = ("finished", "stopped", "diverged")  # what has a value, infinitely bad for diverged ones


class Result(NamedTuple):
    """One run, as far as it was asked for."""

    state: str  # new, finished, stopped, diverged, failed, interrupted
    value: float | None = None  # of the metric
    step: int = 0
    seconds: float | None = None
    message: str = ""

    @property
    def settled(self) -> bool:
        return self.state in SETTLED


NEW = Result("new")


def look(folder: Path, searched: Searched, until: int | None) -> Result:
    """A run's state with regard to step `until`, or its end. Raises UserError for damaged files."""
    status = _status(folder / "status.json")
    if not status:
        return NEW
    state, step = status["state"], status["step"]
    if state == "running":
        state = "interrupted"  # nobody runs in it: the sweep's lock is ours
    passed = until is not None and (step > until or (state == "stopped" and step == until))
    if passed and state != "finished":
        state = "stopped"
    elif state == "stopped":
        state = "interrupted"  # it goes on
    result = Result(state, None, step, _seconds(folder / "timing.jsonl", until), status.get("message", ""))
    if not result.settled:
        return result
    if state == "diverged":
        return result._replace(value=searched.sign * math.inf)
    return result._replace(value=value_of(folder, searched, until))


def value_of(folder: Path, searched: Searched, until: int | None = None) -> float | None:
    """The metric's last or best value up to a step; None if there is no metric to go by."""
    if searched.metric is None:
        return None
    rows = read_rows(folder / "metrics.jsonl")
    values = [
        row[searched.metric]
        for row in rows
        if searched.metric in row and (until is None or row["step"] <= until)
    ]
    if not values:
        return None
    if searched.value == "last":
        return values[-1]
    return min(values) if searched.goal == "min" else max(values)


def metrics_of(folder: Path) -> list[str]:
    """The names in a run's metrics.jsonl, those of the test left out."""
    names = (name for row in read_rows(folder / "metrics.jsonl") for name in row)
    return [name for name in dict.fromkeys(names) if name != "step" and not name.startswith("test/")]


def _seconds(path: Path, until: int | None) -> float | None:
    rows = [row for row in read_rows(path) if "seconds" in row and (until is None or row["step"] <= until)]
    return rows[-1]["seconds"] if rows else None


def _status(path: Path) -> dict[str, Any]:
    """status.json, or nothing: a run killed at its very beginning has none."""
    if not path.exists():
        return {}
    try:
        status = json.loads(path.read_text("utf-8"))
        return {**status, "state": str(status["state"]), "step": int(status["step"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; delete {path.parent} and run the same sweep again") from None
