"""A comparison as files: compare.csv, compare.md with its curves, compare.html."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metalearn.compare.grouping import learned
from metalearn.compare.model import Comparison, Entry, Group
from metalearn.compare.pairs import RULE as TESTED
from metalearn.compare.table import RULE, overview, tests
from metalearn.records import differing
from metalearn.registry import UserError
from metalearn.report.drawings import Drawing
from metalearn.report.figures import Band, chart
from metalearn.report.numbers import duration
from metalearn.report.page import Document, Gallery, Grid, Link, Section, Words
from metalearn.report.page import write as write_page

DRAWN = 12  # metrics of a few configurations
LARGE = 50  # configurations, of which the metrics in the table alone are drawn
LINES = 8  # configurations in a chart: as many as there are colours
RUNS = 200  # that compare.md lists; compare.csv has all


def write(comparison: Comparison, folder: Path) -> Path:
    """Write all three; returns the page's path. Raises UserError if they cannot be written."""
    from metalearn.compare import page

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(folder / "compare.csv", rows(comparison))
        write_page(_document(comparison, folder), folder, "compare", html=False)
        page.write(comparison, folder / "compare.html")
    except OSError as error:
        raise UserError(f"--output: {error.filename or folder}: cannot write: {error.strerror}") from None
    return folder / "compare.html"


def _write_rows(path: Path, lines: Iterator[list[Any]]) -> None:
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    temporary.replace(path)


def rows(comparison: Comparison) -> Iterator[list[Any]]:
    """For other programs: one line a run, full precision, every option in which runs differ."""
    entries = [entry for group in comparison.groups for entry in group.entries]
    configs = [learned(group.entries[0]) for group in comparison.groups]
    keys, metrics = differing(configs), list(dict.fromkeys(m for entry in entries for m in entry.final))
    ends = [part for metric in metrics for part in (metric, f"{metric} best")]
    yield [
        "run",
        "group",
        "state",
        "step",
        "seed",
        *keys,
        *ends,
        "comparable",
        "parameters",
        "seconds",
        "joules",
    ]
    for group in comparison.groups:
        for entry in group.entries:
            yield [
                entry.place, group.label, entry.state, entry.step, entry.seed,
                *(entry.config.get(key, "") for key in keys),
                *(values.get(metric, "") for metric in metrics for values in (entry.final, entry.best)),
                entry.comparable, entry.parameters, entry.seconds, entry.joules,
            ]  # fmt: skip


def _document(comparison: Comparison, folder: Path) -> Document:
    entries = [entry for group in comparison.groups for entry in group.entries]
    tested, pictures = tests(comparison), [_taken(picture) for picture in comparison.pictures]
    curves = list(charts(comparison))
    sections = [
        Section("Results", [_flat(overview(comparison)), Words(RULE)]),
        *([Section("Tests", [tested, Words(TESTED)])] if tested else []),
        *([Section("Curves", [Gallery(curves)])] if curves else []),
        *(
            [
                Section(
                    "Differences", [*map(Words, comparison.words), *([Gallery(pictures)] if pictures else [])]
                )
            ]
            if comparison.words or pictures
            else []
        ),
        Section("Runs", _runs(comparison, folder)),
    ]
    count = len(comparison.groups)
    lead = f"{len(entries)} runs of {count} configuration{'s' * (count != 1)}. compare.csv has a line a run."
    return Document(comparison.title, lead, comparison.notices, sections)


def _flat(grid: Grid) -> Grid:
    """Cells of several lines in one."""
    return grid._replace(rows=[[str(cell).replace("\n", "; ") for cell in row] for row in grid.rows])


def _taken(picture: Any) -> Drawing:
    return Drawing(picture.title, picture.svg, picture.caption, False)


def _runs(comparison: Comparison, folder: Path) -> list[Grid | Words]:
    listed = [(group.label, entry) for group in comparison.groups for entry in group.entries]
    table = [
        [
            label,
            _way(entry, folder),
            "-" if entry.seed is None else str(entry.seed),
            entry.state,
            f"{entry.step:,}",
            duration(entry.seconds),
            entry.message or "-",
        ]
        for label, entry in listed[:RUNS]
    ]
    header = ("configuration", "run", "seed", "state", "steps", "time", "message")
    more = [Words(f"And {len(listed) - RUNS} more in compare.csv.")] if len(listed) > RUNS else []
    return [Grid(header, table, "", frozenset({2, 4, 5})), *more]


def _way(entry: Entry, folder: Path) -> Link | str:
    if entry.place.startswith(("http://", "https://")):
        return Link(entry.place, entry.place)
    path = Path(entry.place)
    return Link(path.name, os.path.relpath(path, folder)) if path.exists() else entry.place


def charts(comparison: Comparison) -> Iterator[Drawing]:
    """The curves of the first metrics: means and 95 % intervals, of many configurations the best."""
    many = len(comparison.groups) > LARGE
    for metric in [one for one in comparison.curved if not many or one in comparison.metrics][:DRAWN]:
        groups = [group for group in comparison.groups if metric in group.curves]
        kept = _best(groups, metric)
        bands = [_line(group, metric, place) for place, group in enumerate(kept)]
        left = f" The best {len(kept)} of {len(groups)} configurations." if len(kept) < len(groups) else ""
        caption = f"Means over seeds; the band is the 95 % t-interval of the mean.{left}"
        yield Drawing(metric, chart(bands, "step", metric, False), caption, True)


def _best(groups: Sequence[Group], metric: str) -> list[Group]:
    """Those with the best final means, in the order of the table."""
    if len(groups) <= LINES:
        return list(groups)
    goal = next(entry.goals[metric] for group in groups for entry in group.entries if metric in entry.goals)
    order = sorted(groups, key=lambda group: group.final[metric].mean * (1 if goal == "min" else -1))
    names = {group.label for group in order[:LINES]}
    return [group for group in groups if group.label in names]


def _line(group: Group, metric: str, place: int) -> Band:
    band = group.curves[metric]
    return Band(group.label, band.steps, band.mean, band.low, band.high, band.runs, place)
