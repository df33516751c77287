"""Run directories as the training loop leaves them, with numbers that a test chooses."""

import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

CONFIG = {
    "defaults": ["_self_"],
    "hydra": {"run": {"dir": "."}},
    "runs": "runs",
    "run_dir": None,
    "data_dir": "data",
    "download": True,
    "role": "train",
    "network": {"name": "mlp", "hidden": [20]},
    "hypergradient": {"name": "none"},
    "machine": {"name": "cpu", "precision": "fp32", "threads": 1},
    "log": {"name": "offline"},
    "paper": None,
}
PROVENANCE = {
    "command": ["metalearn", "train", "recipe=quickstart/toy"],
    "versions": {"python": "3.11.7", "metalearn": "0.1.0", "torch": "2.13.0"},
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "hardware": {"cpu": "Test processor", "cores": 2, "threads": 1, "memory_gib": 15.6, "gpu": None},
}
PICTURE = (
    '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd">'
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 620 170">'
    "<style>text {font: 13px sans-serif}</style><metadata>http://example.org</metadata>"
    "<script>alert(1)</script>"
    '<defs><clipPath id="clip"><rect width="620" height="170"/></clipPath>'
    '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M0,0L8,4L0,8z"/></marker></defs>'
    '<g clip-path="url(#clip)" fill="none" stroke="#444">'
    '<path d="M70,50L280,85" marker-end="url(#tip)"/><path d="M70,125L280,90" marker-end="url(#tip)"/>'
    '<path id="edge" d="M320,87L540,87" marker-end="url(#tip)"/></g>'
    '<g stroke="#333"><circle cx="45" cy="48" r="24" fill="#cfe3f5"/><circle cx="45" cy="127" r="24" '
    'fill="#cfe3f5"/><circle cx="300" cy="87" r="20" fill="#f4e4b8"/><circle cx="565" cy="87" r="24" '
    'fill="#d3ecd0"/></g>'
    '<text x="33" y="52">k-2</text><text x="33" y="131">k-1</text><text x="560" y="92">k</text>'
    '<text x="135" y="50">sep_conv_3x3</text><text x="135" y="135">max_pool_3x3</text>'
    '<use xlink:href="#edge" onclick="alert(2)"/></svg>'
)

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, seed=0, test=2.5, ...)` writes a run directory and returns it."""

    def make(
        name: str,
        *,
        seed: int = 0,
        task: str = "digits",
        test: float | None = 2.5,
        metric: str = "error",
        state: str = "finished",
        message: str = "",
        comparable: bool = True,
        parameters: int | None = 1234,
        paper: dict[str, Any] | None = None,
        rate: float = 0.1,
        steps: int = 100,
    ) -> Path:
        path = tmp_path / "runs" / name
        (path / "artifacts").mkdir(parents=True)
        train = {"steps": 100, "monitor": f"valid/{metric}", "goal": "min"}
        method = {"name": "supervised", "learning_rate": rate}
        config = CONFIG | {"seed": seed, "name": "toy", "task": {"name": task}, "train": train, "method": method}
        (path / "run.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config | {"paper": paper})))
        write_json(path / "status.json", {"state": state, "step": steps, "message": message})
        about = {"name": task, "digest": "ab" * 32, "provenance": "embedded", "source": "UCI, see docs"}
        about |= {"licence": "CC BY 4.0", "comparable": comparable}
        started = f"2026-11-21T10:0{seed}:00+00:00"
        write_json(path / "provenance.json", PROVENANCE | {"seed": seed, "started": started, "task": about})
        write_rows(path / "metrics.jsonl", metric_rows(metric, steps, seed, test))
        write_rows(
            path / "timing.jsonl",
            [{"step": s, "seconds": s * 0.2, "steps_per_second": 5.0} for s in (10, steps)],
        )
        if parameters is not None:
            write_json(path / "artifacts" / "summary.json", {"network": "Mlp", "parameters": parameters})
        return path

    return make


def metric_rows(metric: str, steps: int, seed: int, test: float | None) -> list[dict[str, Any]]:
    """Falling curves; the validation metric is lowest at step 80 and ends above that."""
    rows: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 10):
        fall = math.exp(-step / 30) * (1 + 0.1 * seed)
        if step:
            rows.append({"step": step, "train/loss": 0.1 + 2 * fall})
        if step % 20 == 0:
            rise = 0.5 * max(0, step - 80) / 20
            rows.append({"step": step, "valid/loss": 0.2 + fall, f"valid/{metric}": 3 + 40 * fall + rise})
    return rows if test is None else [*rows, {"step": steps, f"test/{metric}": test, "selected/step": steps}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def write_curves(path: Path, values: dict[str, list[float]]) -> None:
    """A trajectories file as learned optimizers leave it."""
    length = len(next(iter(values.values())))
    write_json(path, {"x": list(range(length)), "x_label": "step", "series": values})


def live_lock(path: Path) -> None:
    """Name this process as the one that runs in a directory."""
    write_json(path / "lock", {"pid": os.getpid(), "host": socket.gethostname()})


def make_plan(**changes: Any) -> Any:
    """A plan as `metalearn replicate` reads it from a recipe."""
    plan = {
        "name": "quickstart/toy",
        "family": "DARTS",
        "seeds": [0, 1, 2],
        "stages": {"retrain": None, "random": None},
        "table": SimpleNamespace(
            metric="test/error", goal="min", unit="%", rows={"found cell": "retrain", "random cell": "random"}
        ),
        "figures": [],
    }
    return SimpleNamespace(**plan | changes)
