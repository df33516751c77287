"""What a step of a sweep's runs costs, from runs that have been done."""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.registry import UserError
from metalearn.sweep.definition import Sweep, quoted
from metalearn.sweep.strategy import Ask
from metalearn.train.rows import read_rows

MEASURED = 6  # steps, of which the first is left out
SEARCHED = 400  # earlier runs, the newest first


class Cost(NamedTuple):
    """Seconds of a step with its share of evaluations, and where they are from."""

    seconds: float
    source: str


def cost(sweep: Sweep) -> Cost | None:
    """From finished runs of this sweep, else from an earlier run of the same method, network and task."""
    own = [rate for folder in sweep.folder.glob("*_seed*") if (rate := _rate(folder)) is not None]
    if own:
        return Cost(statistics.fmean(own), f"{len(own)} runs of this sweep")
    for folder in _earlier(Path(sweep.base.runs).expanduser()):
        rate = _rate(folder) if _alike(folder / "run.yaml", sweep) else None
        if rate is not None:
            return Cost(rate, f"{folder}, of the same method, network and task")
    return None


def measure(sweep: Sweep, ask: Ask) -> Cost:
    """By a few steps of one run in a folder that is deleted. Raises UserError if they fail."""
    from metalearn.work import work
    from metalearn.workers import Pool

    job = sweep.job(ask.point, sweep.seeds[0])
    with tempfile.TemporaryDirectory() as scratch, Pool(1, work) as pool:
        lines = [line for line in job.overrides if not line.startswith(("run_dir=", "train.log_every="))]
        own = [f"run_dir={quoted(scratch + '/run')}", "++log.name=none", "train.log_every=1"]
        pool.start(job, (*lines, *own, f"++train.stop_at={MEASURED}"))
        outcome = next(iter(pool.ended()))[1]
        rows = read_rows(Path(scratch) / "run" / "timing.jsonl")
    if len(rows) < 2:
        reason = outcome.message if outcome else "its process died"
        raise UserError(f"sweep.measure: {job} took no steps: {reason or 'it is too short'}")
    seconds = (rows[-1]["seconds"] - rows[0]["seconds"]) / (len(rows) - 1)
    return Cost(max(seconds, 1e-6), f"{len(rows) - 1} steps of {job} just now, evaluations left out")


def _earlier(runs: Path) -> Iterator[Path]:
    found = [(path.stat().st_mtime, path.parent) for path in runs.rglob("timing.jsonl")]
    return (folder for _, folder in sorted(found, reverse=True)[:SEARCHED])


def _rate(folder: Path) -> float | None:
    rows: list[dict[str, Any]] = read_rows(folder / "timing.jsonl")
    if not rows or not rows[-1].get("seconds") or not rows[-1].get("step"):
        return None
    return rows[-1]["seconds"] / rows[-1]["step"]


def _alike(config: Path, sweep: Sweep) -> bool:
    import yaml

    try:
        values = yaml.load(config.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return all(
            values[group]["name"] == getattr(sweep.base, group).name
            for group in ("method", "network", "task")
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False
