"""Run directories, read and never written: what a run was, where it stands, its numbers."""

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.registry import UserError, closest

NOT_COMPARABLE = "not comparable with papers"
# keys of a configuration that say nothing about what is learned
PLACES = ("seed", "runs", "run_dir", "data_dir", "download", "log", "paper", "name", "role", "replicate")


class Point(NamedTuple):
    """A value of a metric and the number of steps done when it was taken."""

    step: int
    value: float


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path
    config: dict[str, Any]  # run.yaml
    provenance: dict[str, Any]
    state: str  # finished, running, failed, diverged, interrupted, or crashed: running, yet no process has it
    step: int
    message: str
    rows: list[dict[str, Any]]  # metrics.jsonl
    seconds: float | None  # the time of training and evaluation, pauses left out
    parameters: int | None
    joules: float | None = None  # energy of all starts, where the device told it

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def task(self) -> str:
        return self.config["task"]["name"]

    @property
    def comparable(self) -> bool:
        """Whether test figures on this copy of the data may stand beside published ones."""
        return self.provenance.get("task", {}).get("comparable", True)

    @property
    def metrics(self) -> list[str]:
        """The names in metrics.jsonl, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

    def curve(self, metric: str) -> list[Point]:
        """All values of a metric. Raises UserError listing the metrics that exist."""
        points = [Point(row["step"], row[metric]) for row in self.rows if metric in row]
        if not points:
            there = ", ".join(closest(metric, self.metrics)) or "none yet"
            raise UserError(f"{self.path}: has no metric {metric!r}; it has: {there}")
        return points

    def last(self, metric: str) -> float:
        """The newest value of a metric. Raises UserError."""
        return self.curve(metric)[-1].value

    def best(self, metric: str) -> Point:
        """The best value of a metric by `goal` and where it was reached. Raises UserError."""
        pick = min if self.goal(metric) == "min" else max
        return pick(self.curve(metric), key=lambda point: point.value)

    def goal(self, metric: str) -> str:
        """min or max: `train.goal` for the quantity that `train.monitor` names, min for all others."""
        train = self.config.get("train", {})
        monitored = (train.get("monitor") or "").rpartition("/")[2]
        return train.get("goal", "min") if metric.rpartition("/")[2] == monitored else "min"

    def stamp(self, metric: str) -> str:
        """What must stand beside a value of the metric: nothing, or that it is not comparable."""
        return NOT_COMPARABLE if metric.startswith("test/") and not self.comparable else ""


def targets(run: Run) -> list[dict[str, Any]]:
    """The published values that a run is held to, each as a `paper` block of one metric."""
    paper = run.config.get("paper")
    if not paper:
        return []
    others = (paper.get("others") or {}).items()
    return [paper, *({**paper, "metric": key, "value": value, "spread": None} for key, value in others)]


def read(path: Path) -> Run:
    """The run in a directory. Raises UserError naming what is missing or broken."""
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; give a run directory, metalearn list runs shows those under runs/"
        )
    if not (path / "run.yaml").exists():
        raise UserError(
            f"{path}: is no run directory, it has no run.yaml; metalearn list runs shows those under runs/"
        )
    state, step, message = standing(path)
    times = [row for row in _rows(path / "timing.jsonl") if "seconds" in row]
    return Run(
        path=path,
        config=_config(path / "run.yaml"),
        provenance=read_object(path / "provenance.json"),
        state=state,
        step=step,
        message=message,
        rows=_rows(path / "metrics.jsonl"),
        seconds=times[-1]["seconds"] if times else None,
        parameters=read_object(path / "artifacts" / "summary.json").get("parameters"),
        joules=times[-1].get("joules") if times else None,
    )


def standing(path: Path) -> tuple[str, int, str]:
    """State, steps done and message of the run in a directory. Raises UserError."""
    status = read_object(path / "status.json")
    state = status.get("state", "running")
    state = "crashed" if state == "running" and not _is_held(path / "lock") else state
    return state, status.get("step", 0), status.get("message", "")


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    parts = (flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
    return {key: value for part in parts for key, value in part.items()}


def group(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but their seed and their places, together; in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(learned(run), sort_keys=True, default=str), []).append(run)
    return list(groups.values())


def learned(run: Run) -> dict[str, Any]:
    """The flat configuration without seed and places: equal means the same experiment."""
    return flat({key: value for key, value in run.config.items() if key not in PLACES})


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose value is not the same in all flat configurations."""
    keys = dict.fromkeys(key for config in configs for key in config)
    absent = object()
    return [key for key in keys if any(c.get(key, absent) != configs[0].get(key, absent) for c in configs)]


def _config(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(loaded, dict)
        if "seed" not in loaded or "name" not in (loaded.get("task") or {}):
            raise ValueError("it lacks seed or task.name")
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: cannot be read as a configuration: {reason}") from None
    return {str(key): value for key, value in loaded.items() if key not in ("defaults", "hydra")}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is no file. Raises UserError."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is broken: {error}; delete the run and start it anew") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is broken: no JSON object; delete the run and start it anew")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    return rows_of(path.read_bytes()) if path.exists() else []


def rows_of(data: bytes) -> list[dict[str, Any]]:
    """The numbers of rows up to the first that is torn: a killed run leaves its last line half written."""
    rows: list[dict[str, Any]] = []
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(row, dict) or "step" not in row:
            break
        rows.append({name: value for name, value in row.items() if isinstance(value, int | float)})
    return rows


def _is_held(lock: Path) -> bool:
    """Whether a process runs in the lock's folder.

    The pid in the file is asked first, so that the kernel's lock is only tried, shared and for a moment,
    when a process of that number lives.
    """
    try:
        holder = json.loads(lock.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    if holder.get("host") != socket.gethostname():
        return True  # another machine's run cannot be asked
    if not Path(f"/proc/{holder.get('pid')}").exists() and Path("/proc/self").exists():
        return False
    descriptor = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
