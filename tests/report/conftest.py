"""Run directories as the training loop leaves them, with numbers that a test chooses."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from metalearn import report

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
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="0 0 620 170">'
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

FIGURES = [
    {
        "title": "Validation",
        "curve": "valid/error",
        "label": "error, %",
        "stages": {"found cell": "retrain", "random cell": "random"},
    },
    {"title": "Losses", "curve": ["train/loss", "valid/loss"], "label": "loss", "stage": "retrain"},
    {"title": "Log", "artifact": "trajectories.json", "stages": ["retrain", "random"], "log": True},
    {"title": "Cell", "picture": "cell.svg", "stage": "retrain"},
    {"title": "The same cell", "picture": "cell.svg", "stage": "retrain"},
    {"title": "Nothing", "curve": "valid/entropy", "stage": "retrain"},
]

MakeRun = Callable[..., Path]
Folders = dict[str, dict[int, Path]]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, seed=0, test=2.5, ...)` writes a run directory and returns it."""
    return _run_maker(tmp_path)


def _run_maker(root: Path) -> MakeRun:

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
        path = root / "runs" / name
        (path / "artifacts").mkdir(parents=True)
        train = {"steps": 100, "monitor": f"valid/{metric}", "goal": "min"}
        method = {"name": "supervised", "learning_rate": rate}
        config = CONFIG | {
            "seed": seed,
            "name": "toy",
            "task": {"name": task},
            "train": train,
            "method": method,
        }
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


@pytest.fixture
def replication(make_run: MakeRun) -> Callable[..., Folders]:
    """`replication({...}, retrain=[2.0, 2.5], ...)`: stage -> test values by seed, as run directories."""
    return functools.partial(_replication, make_run)


def _replication(
    make_run: MakeRun, settings: dict[str, Any] | None = None, /, **stages: list[float]
) -> Folders:
    return {
        stage: {
            seed: make_run(f"{stage}_seed{seed}", seed=seed, test=value, **settings or {})
            for seed, value in enumerate(values)
        }
        for stage, values in stages.items()
    }


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """The page of a whole replication: its HTML, its Markdown and its folder."""
    root = tmp_path_factory.mktemp("page")
    folders = _replication(_run_maker(root), retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.6])
    for stage, runs in folders.items():
        for seed, path in runs.items():
            (path / "artifacts" / "cell.svg").write_text(PICTURE)
            _write_curves(path, {stage: [10.0 ** -(seed + 1), 1.0]})
    report.combine("quickstart/toy", [(_plan(figures=FIGURES), folders)], root / "out", 251.0)
    return (root / "out" / "report.html").read_text(), (root / "out" / "report.md").read_text(), root / "out"


def metric_rows(metric: str, steps: int, seed: int, test: float | None) -> list[dict[str, Any]]:
    """Falling curves; the validation metric is lowest at step 80 and ends above that."""
    rows: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 10):
        fall = math.exp(-step / 30) * (1 + 0.1 * seed)
        if step:
            rows.append({"step": step, "train/loss": 0.1 + 2 * fall})
        if step % 20 == 0:
            rise = 3.0 * max(0, step - 80) / 20
            rows.append({"step": step, "valid/loss": 0.2 + fall, f"valid/{metric}": 3 + 40 * fall + rise})
    return rows if test is None else [*rows, {"step": steps, f"test/{metric}": test, "selected/step": steps}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


@pytest.fixture
def picture() -> str:
    """An SVG with everything that must not reach a page: ids, a style, a script, outside references."""
    return PICTURE


@pytest.fixture
def write_curves() -> Callable[[Path, dict[str, list[float]]], None]:
    """`write_curves(run, {"Adam": [...]})` writes artifacts/trajectories.json."""
    return _write_curves


def _write_curves(run: Path, values: dict[str, list[float]]) -> None:
    """A trajectories file as learned optimizers leave it."""
    length = len(next(iter(values.values())))
    path = run / "artifacts" / "trajectories.json"
    write_json(
        path,
        {"x": list(range(length)), "x_label": "inner step", "y_label": "loss of a wave", "series": values},
    )


@pytest.fixture
def make_plan() -> Callable[..., Any]:
    """`make_plan(seeds=..., ...)`: a plan as `metalearn replicate` reads it from a recipe."""
    return _plan


def _plan(**changes: Any) -> Any:
    plan = {
        "name": "quickstart/toy",
        "family": "DARTS",
        "seeds": [0, 1, 2],
        "stages": {"retrain": None, "random": None},
        "table": SimpleNamespace(
            metric="test/error",
            goal="min",
            unit="%",
            rows={"found cell": "retrain", "random cell": "random"},
            claims={},
        ),
        "figures": [],
        "tier": "",
        "selections": [],
        "paired": lambda stage: True,  # noqa: ARG005
    }
    return SimpleNamespace(**plan | changes)
