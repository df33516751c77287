"""A diagnosis in files: csv, markdown, json and the plot."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from metalearn.diagnose.config import Diagnosis
from metalearn.diagnose.plot import draw
from metalearn.diagnose.subject import Subject
from metalearn.diagnose.table import COLUMNS, MEANING, Row, cells, markdown, reasons, summary
from metalearn.registry import UserError
from metalearn.train import provenance
from metalearn.train.files import write_text
from metalearn.train.stored_config import plain

PLACES = ("data_dir", "runs", "run_dir", "log")  # of the machine at hand: not told


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished diagnosis."""

    name: str
    subject: Subject
    diagnosis: Diagnosis
    rows: list[Row]

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        groups = self.subject.groups
        return (
            f"{self.name}: {self.subject.numbers} meta-parameters, {len(groups[0][0].segment.inner)} inner "
            f"steps, {self.subject.state}, {self.subject.precision}, mean over {len(groups)} steps"
        )


def make_folder(wanted: Path | None, name: str) -> Path:
    """A new folder, or the wanted one if it is absent or empty. Raises UserError."""
    if wanted is not None:
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise UserError(f"--output: {wanted} is there and not empty; choose another folder")
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    first = Path("runs") / "diagnose" / f"{name}_{datetime.now().strftime('%Y%m%d_%H%M%S')}"
    number, path = 1, first
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = first.with_name(f"{first.name}_{number}")
        else:
            return path


def write(result: Result, folder: Path, command: Sequence[str]) -> None:
    """diagnose.csv, .md, .json, .svg and .png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "diagnose.csv", _csv(result.rows))
    write_text(folder / "diagnose.json", json.dumps(_record(result, command), indent=1) + "\n")
    write_text(folder / "diagnose.md", page([result], [""]))
    draw(result.title, result.rows, folder)


def page(results: Sequence[Result], folders: Sequence[str]) -> str:
    """A short table of several results, and a section for each; `folders` hold their plots, from the page."""
    parts = ["# Hypergradient estimators against the exact hypergradient\n", MEANING + "\n", _where() + "\n"]
    if len(results) > 1:
        short = summary({result.name: result.rows for result in results})
        parts += ["## In short\n", markdown(short) + "\n"]
    for result, folder in zip(results, folders, strict=True):
        plot = f"{folder}/diagnose.svg" if folder else "diagnose.svg"
        picture = f"![bias and cosine against milliseconds]({plot})\n"
        notes = "".join(f"{line}\n" for line in reasons(result.rows))
        parts += [
            f"## {result.title}\n",
            markdown(cells(result.rows)) + "\n",
            *([notes] if notes else []),
            picture,
        ]
    return "\n".join(parts)


def _where() -> str:
    hardware, git = provenance.hardware(), provenance.git()
    device = hardware["gpu"] or hardware["cpu"]
    commit = f", commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else ""
    return (
        f"Measured on {device}, {hardware['threads']} threads, torch {provenance.version('torch')}{commit}, "
        f"{datetime.now().strftime('%Y-%m-%d')}."
    )


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = [of(row) for of in COLUMNS.values()]
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue()


def _record(result: Result, command: Sequence[str]) -> dict[str, Any]:
    """All that is needed to measure again; numbers that are not finite as text."""
    config = {key: value for key, value in plain(result.subject.config).items() if key not in PLACES}
    return {
        "problem": result.name,
        "state": result.subject.state,
        "precision": result.subject.precision,
        "meta_parameters": result.subject.numbers,
        "diagnosis": dataclasses.asdict(result.diagnosis),
        **provenance.of_start(command, config["seed"]),
        "hardware": provenance.hardware(),
        "task": provenance.of_task(result.subject.parts.task.spec),
        "config": config,
        "rows": [{name: _finite(of(row)) for name, of in COLUMNS.items()} for row in result.rows],
    }


def _finite(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
