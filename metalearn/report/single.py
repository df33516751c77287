"""One run: what was run, its numbers beside the published ones, its curves and pictures."""

from collections.abc import Sequence
from pathlib import Path

from metalearn import records
from metalearn.records import Run
from metalearn.registry import UserError
from metalearn.report import drawings, origin
from metalearn.report.drawings import Drawing
from metalearn.report.numbers import duration, plain, span
from metalearn.report.page import Block, Command, Document, Gallery, Grid, Section, Words, write
from metalearn.report.terminal import show


def run(directory: Path) -> None:
    """Write report.md and report.html into a run directory and print its numbers.

    Raises UserError naming what is missing where it is none.
    """
    found = records.read(directory)
    numbers = _numbers(found)
    page = write(_document(found, numbers), directory, "report")
    paper = origin.papers([(found.config.get("name", ""), [found], "")])
    against = [f"paper: {row[3]} ({row[4]}); ours: {row[2]}; {row[5]}" for row in paper.rows] if paper else []
    show(str(directory), numbers, [], [*_notices(found), *against], page)


def page_of(directory: Path) -> Path:
    """Write report.md and report.html into a run directory; the page. Raises UserError as `run`."""
    found = records.read(directory)
    return write(_document(found, _numbers(found)), directory, "report")


def _document(found: Run, numbers: Grid) -> Document:
    paper = origin.papers([(found.config.get("name", ""), [found], "")])
    ours: list[Block] = [numbers] if numbers.rows else [Words("metrics.jsonl has no whole row yet.")]
    pictures = [*drawings.of_metrics({"": [found]}), *_artifacts(found)]
    sections = [
        Section("Numbers", ours),
        *([Section("Against the paper", [paper])] if paper else []),
        *([Section("Figures", [Gallery(pictures)])] if pictures else []),
        Section("Configuration", [_configuration(found)]),
        Section("Provenance", _provenance(found)),
    ]
    lead = f"{found.state} at step {found.step:,} after {duration(found.seconds)}, seed {found.seed}"
    parameters = f", {span([found.parameters])} parameters" if found.parameters else ""
    return Document(
        str(found.config.get("name", found.path.name)), f"{lead}{parameters}.", _notices(found), sections
    )


def _notices(found: Run) -> list[str]:
    if found.state == "finished" and not found.message:
        return []
    return [f"This run is {found.state}{': ' if found.message else '.'}{found.message}"]


def _numbers(found: Run) -> Grid:
    rows = []
    for metric in found.metrics:
        points, best = found.curve(metric), found.best(metric)
        way = (
            (plain(best.value), f"{best.step:,}", found.goal(metric)) if len(points) > 1 else ("-", "-", "-")
        )
        rows.append((metric, plain(points[-1].value), *way, f"{len(points):,}", found.stamp(metric)))
    header = ("metric", "last", "best", "at step", "goal", "values", "note")
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Grid(header, rows, "", frozenset({1, 2, 3, 5}))


def _artifacts(found: Run) -> Sequence[Drawing]:
    """The pictures that the method left, and the files that hold curves."""
    made = []
    folder = found.path / "artifacts"
    for path in sorted(folder.glob("*.svg")):
        made.append(
            Drawing(path.stem.replace("_", " "), path.read_text("utf-8"), f"artifacts/{path.name}", False)
        )
    for path in sorted(folder.glob("*.json")):
        try:
            lines, (x_label, y_label) = drawings.series(found, path.name)
        except UserError:
            continue  # a file of another kind
        title = path.stem.replace("_", " ")
        one_seed = {name: [curve] for name, curve in lines.items()}
        made.append(drawings.overlay(title, one_seed, (x_label, y_label or title), False, {}))
    return made


def _configuration(found: Run) -> Grid:
    rows = [
        (key, "null" if value is None else str(value)) for key, value in records.flat(found.config).items()
    ]
    return Grid(("option", "value"), rows, "", frozenset(), f"All {len(rows)} options")


def _provenance(found: Run) -> list[Block]:
    return [
        Words("Run it again, in a new directory:"),
        Command(f"metalearn train --config-dir {found.path} --config-name run"),
        origin.machine([found]),
        origin.data([found]),
        origin.commands([found])._replace(folded="The command that made it"),
    ]
