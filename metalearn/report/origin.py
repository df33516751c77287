"""Where numbers come from: machine, versions, commit, data, seeds, commands."""

import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from metalearn.records import NOT_COMPARABLE, Run, targets
from metalearn.report.claims import against_paper, published, summary
from metalearn.report.numbers import duration, plain
from metalearn.report.page import Grid, Link
from metalearn.report.plan import Entry
from metalearn.report.selections import Selection


def machine(runs: Sequence[Run]) -> Grid:
    """Machine, versions, commit, seeds and times; what differs between runs is listed with its count."""
    rows = [
        (name, text)
        for name, tell in (
            ("Machine", _hardware),
            ("Versions", _versions),
            ("Commit", _commit),
            ("Precision", lambda run: str(run.config.get("machine", {}).get("precision", "-"))),
        )
        for text in _distinct(runs, tell)
    ]
    started = sorted(str(run.provenance["started"]) for run in runs if "started" in run.provenance)
    if started:
        rows.append(
            ("Started", started[0] if len(started) == 1 else f"{started[0]} (first), {started[-1]} (last)")
        )
    rows.append(("Seeds", ", ".join(map(str, sorted({run.seed for run in runs})))))
    return Grid(("what", "value"), rows, "How it was made")


def _distinct(runs: Sequence[Run], tell: Callable[[Run], str]) -> list[str]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[tell(run)] = counts.get(tell(run), 0) + 1
    if len(counts) == 1:
        return list(counts)
    return [f"{text} ({count} of {len(runs)} runs)" for text, count in counts.items()]


def _hardware(run: Run) -> str:
    found = run.provenance.get("hardware")
    if not found:
        return "not recorded"
    parts = [
        str(found.get("cpu")),
        f"{found.get('cores')} cores",
        f"{found.get('threads')} thread{'s' * (found.get('threads') != 1)} a run",
        f"{found.get('memory_gib')} GiB",
        f"{found['gpu']}, CUDA {found.get('cuda')}" if found.get("gpu") else "no GPU",
    ]
    return ", ".join(parts)


def _versions(run: Run) -> str:
    versions = run.provenance.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"


def _commit(run: Run) -> str:
    git = run.provenance.get("git")
    if not git:
        return "not a git checkout"
    return git["commit"] + (", with changes that are not committed" if git.get("dirty") else "")


def data(runs: Sequence[Run]) -> Grid:
    """The data of each task: where the bytes came from, their digest, and whether figures are comparable."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        task = run.provenance.get("task", {})
        found[task.get("name", run.task), task.get("digest", "")] = task
    rows = [
        (
            name,
            str(task.get("provenance", "not recorded")),
            str(task.get("source", "-")),
            str(task.get("licence", "-")),
            digest[:16] or "-",
            "yes" if task.get("comparable", True) else NOT_COMPARABLE,
        )
        for (name, digest), task in found.items()
    ]
    header = ("task", "bytes from", "source", "licence", "sha256 begins", "comparable with papers")
    return Grid(header, rows, "Data")


def papers(groups: Iterable[tuple[str, Sequence[Run], str]]) -> Grid | None:
    """The published value beside ours for each (name, runs of several seeds) that has a target.

    The third is what stands in place of a verdict; empty: a verdict.
    """
    rows = []
    for name, runs, instead in groups:
        for paper in targets(runs[0]) if runs else []:
            metric = paper["metric"]
            measured = [run for run in runs if metric in run.metrics]
            values = [run.last(metric) for run in measured]
            comparable = all(run.comparable for run in runs)
            ours = f"{summary(values)} {paper['unit']}" if values else f"no {metric} yet"
            verdict = against_paper(values, paper, comparable, runs[0].goal(metric))
            verdict = instead if instead and comparable else verdict
            rows.append((name, metric, ours.rstrip(), published(paper), paper["source"], verdict))
    header = ("contender", "metric", "ours", "paper", "source", "verdict")
    return Grid(header, rows, "", frozenset({2, 3})) if rows else None


def listing(
    entries: Sequence[tuple[str, Entry]], folder: Path, first: tuple[str, str], folded: str = ""
) -> Grid:
    """One row a run, with a way to its folder from a page in `folder`; `first` heads two columns."""
    rows = [
        (
            name,
            Link(entry.stage, os.path.relpath(entry.path, folder)) if entry.path.exists() else entry.stage,
            str(entry.seed),
            entry.state,
            "-" if entry.run is None else f"{entry.run.step:,}",
            duration(entry.run.seconds if entry.run else None),
            entry.message or "-",
        )
        for name, entry in entries
    ]
    header = (*first, "seed", "state", "steps", "time", "message")
    return Grid(header, rows, "", frozenset({2, 4, 5}), folded)


def commands(runs: Sequence[Run]) -> Grid:
    """The command that made each run."""
    rows = [(str(run.path), shlex.join(run.provenance.get("command", [])) or "not recorded") for run in runs]
    return Grid(("run", "command"), rows, "", frozenset(), f"The commands of all {len(runs)} runs")


def selections(plan: str, made: Sequence[Selection], folder: Path) -> Grid:
    """One row a selection: what it chose, and the values of all candidates by seed; links from `folder`."""
    header = ("plan", "selection", "metric", "chosen seed", "value", "genotype", "finished", "candidates")
    return Grid(header, [(plan, *_selection(one, folder)) for one in made], "", frozenset({3, 4, 6}))


def _selection(selection: Selection, folder: Path) -> tuple[str | Link, ...]:
    report = selection.report
    if report is None:
        return selection.path.name, "-", "-", "-", "-", "-", "none was made"
    chosen, candidates = report["chosen"], report["candidates"]
    values = ", ".join(
        f"{one['seed']}: {one['state'] if one['value'] is None else plain(one['value'])}"
        for one in candidates
    )
    return (
        Link(selection.path.name, os.path.relpath(selection.path, folder)),
        report["metric"],
        str(chosen["seed"]),
        plain(chosen["value"]),
        chosen["genotype"],
        f"{report['finished']} of {len(candidates)}",
        values,
    )
