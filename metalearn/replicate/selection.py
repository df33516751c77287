"""One run of several goes on: the one that validates best."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from metalearn import records
from metalearn.registry import UserError, closest
from metalearn.replicate.jobs import Choice

GENOTYPE = "genotype.json"


class Candidate(NamedTuple):
    """One run that may be chosen; without a value it cannot."""

    seed: int
    state: str
    value: float | None = None
    genotype: str | None = None  # how its sha256 begins


def select(choice: Choice, folder: Path) -> str:
    """Copy the best candidate's genotype and pictures into `folder`, beside selection.json; what was done.

    Candidates that did not finish are left out; of equal values the smaller seed's is taken. A selection
    that runs were already made of stands. Raises UserError if there is nothing to choose from.
    """
    candidates = [_candidate(choice, seed, path) for seed, path in choice.candidates.items()]
    fit = [candidate for candidate in candidates if candidate.value is not None]
    standing = _standing(choice, folder)
    if standing is not None:
        return _words(standing, len(choice.candidates)) + ", as chosen before"
    if not fit:
        states = ", ".join(f"seed {candidate.seed} {candidate.state}" for candidate in candidates)
        raise UserError(f"no run of {choice.options.stage} to choose from ({states})")
    best = min(fit, key=lambda candidate: (_sign(choice) * (candidate.value or 0.0), candidate.seed))
    report = {
        **{key: getattr(choice.options, key) for key in ("stage", "metric", "goal", "value")},
        "chosen": best._asdict(),
        "finished": len(fit),
        "candidates": [candidate._asdict() for candidate in candidates],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _copy(choice.candidates[best.seed] / "artifacts", folder)
    _replace(folder / "selection.json", json.dumps(report, indent=2) + "\n")
    return _words(report, len(choice.candidates))


def _sign(choice: Choice) -> int:
    return 1 if choice.options.goal == "min" else -1


def _candidate(choice: Choice, seed: int, path: Path) -> Candidate:
    """Raises UserError for a finished run without the metric, or without a genotype."""
    if not (path / "run.yaml").exists():
        return Candidate(seed, "missing")
    run, metric = records.read(path), choice.options.metric
    if run.state != "finished":
        return Candidate(seed, run.state)
    if metric not in run.metrics:
        there = ", ".join(closest(metric, run.metrics)) or "none"
        raise UserError(f"{path}: has no metric {metric!r} to choose by; it has: {there}")
    genotype = path / "artifacts" / GENOTYPE
    if not genotype.exists():
        raise UserError(f"{path}: left no artifacts/{GENOTYPE}, so there is nothing to go on with")
    values = [point.value for point in run.curve(metric)]
    extreme = min if choice.options.goal == "min" else max
    value = extreme(values) if choice.options.value == "best" else values[-1]
    return Candidate(seed, run.state, value, hashlib.sha256(genotype.read_bytes()).hexdigest()[:16])


def _standing(choice: Choice, folder: Path) -> dict[str, Any] | None:
    """The selection that is there and in use. Raises UserError if it was made among other runs."""
    path = folder / "selection.json"
    if not path.exists() or not any((run / "run.yaml").exists() for run in choice.dependents):
        return None
    report = json.loads(path.read_text("utf-8"))
    before, now = sorted(c["seed"] for c in report["candidates"]), sorted(choice.candidates)
    if before != now:
        raise UserError(
            f"{path}: was chosen among seeds {', '.join(map(str, before))}, now asked among "
            f"{', '.join(map(str, now))}; take another --runs folder, or delete {folder} and the runs made "
            "of it"
        )
    return report


def _words(report: dict[str, Any], count: int) -> str:
    chosen = report["chosen"]
    among = (
        f"{report['finished']} runs"
        if report["finished"] == count
        else f"{report['finished']} of {count} runs"
    )
    return f"seed {chosen['seed']} of {among}, {report['metric']} {chosen['value']:.5g}"


def _copy(source: Path, folder: Path) -> None:
    for path in sorted((source / GENOTYPE, *source.glob("*.svg"))):
        temporary = folder / f".tmp-{path.name}-{os.getpid()}"
        shutil.copyfile(path, temporary)
        temporary.replace(folder / path.name)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
