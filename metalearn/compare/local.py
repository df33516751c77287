"""Run directories: found below folders, told by their group, read on all cores."""

import fnmatch
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from metalearn import records
from metalearn.compare import configuration, metrics
from metalearn.compare.entry import Told, entry
from metalearn.compare.model import Entry
from metalearn.registry import UserError, closest

TAIL = 4096  # bytes at the end of timing.jsonl that hold its last row
LIST = "metalearn list runs shows those under runs/"


def below(folder: Path) -> Iterator[Path]:
    """Run directories in a folder, at any depth, in order of their names; itself if it is one."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if "run.yaml" in files:
            folders.clear()  # what a run holds is no other run
            yield Path(place)


def in_group(root: Path, group: str) -> list[Path]:
    """Runs below `root` whose W&B group (their `name`) or whose folder is called so; * and ? match anything.

    A name stands for all below it too: `darts` for `darts/cifar10`. Raises UserError with the groups there.
    """
    if not root.is_dir():
        raise UserError(f"--runs: {root} is no folder; give the one that holds the run directories")
    names: dict[Path, str] = {}
    for path in below(root):
        try:
            config = configuration.read(path / "run.yaml")
        except UserError:
            config = {}
        names[path] = str((config.get("log") or {}).get("group") or config.get("name", ""))
    found = [path for path, name in names.items() if _means(group, name) or _means(group, path.name)]
    if not found:
        there = ", ".join(closest(group, sorted({name for name in names.values() if name})))
        raise UserError(
            f"--group: no run under {root} is in a group {group!r}; the groups there: {there or 'none'}"
        )
    return found


def _means(pattern: str, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}/") or fnmatch.fnmatchcase(name, pattern)


def read(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """The runs that can be read, and a sentence for each that cannot."""
    reader = metrics.Reader()
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as threads:  # arrow leaves Python to the others
        results = list(threads.map(partial(_attempt, reader=reader), paths))
    entries = [result for result in results if isinstance(result, Entry)]
    return entries, [f"left out: {result}" for result in results if isinstance(result, str)]


def _attempt(path: Path, reader: metrics.Reader) -> Entry | str:
    try:
        return read_run(path, reader)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or path}: cannot be read: {error.strerror}"


def read_run(path: Path, reader: metrics.Reader) -> Entry:
    """One run directory. Raises UserError, OSError."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run directory, {LIST}")
    if not (path / "run.yaml").exists():
        raise UserError(f"{path}: is no run directory, it has no run.yaml; {LIST}")
    state, step, message = records.standing(path)
    about = records.read_object(path / "provenance.json").get("task", {})
    times = _times(path / "timing.jsonl")
    more = {
        "seconds": times.get("seconds"),
        "joules": times.get("joules"),
        "parameters": records.read_object(path / "artifacts" / "summary.json").get("parameters"),
        "comparable": about.get("comparable", True),
        "artifacts": path / "artifacts" if (path / "artifacts").is_dir() else None,
    }
    series = reader.read(path / "metrics.jsonl")
    config = configuration.read(path / "run.yaml")
    return entry(Told(str(path), "local", config, series, state, step, message, more))


def _times(path: Path) -> dict[str, Any]:
    """The last whole row that tells the seconds, {} without one."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        rows = map(_row, reversed(file.read().splitlines(keepends=True)))
    return next((row for row in rows if "seconds" in row), {})


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
