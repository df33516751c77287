"""`metalearn replicate --list`: every published row, our figures and the verdict."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metalearn.replicate.cards import catalogue, library
from metalearn.replicate.cards.lines import TIERS, Line, lines

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "table", "row", "metric", "unit", "published", *TIERS, "seeds", "verdict", "cost", "plan", "contender",
)  # fmt: skip


def show(names: Sequence[str], runs: Path, as_json: bool) -> None:
    """Print the list of the named families, tables, papers or plans: a table, or tab-separated when piped.

    Cards are those of this checkout and those under `runs`. Raises UserError.
    """
    from rich.console import Console

    chosen = catalogue.chosen(catalogue.entries(), list(names))
    beside = library.under(runs) if runs.is_dir() else []
    found = lines(chosen, library.by_plan(library.collected(), beside))
    console = Console(highlight=False)
    if as_json:
        print(json.dumps([line.plain() for line in found], indent=2))
    elif console.is_terminal:
        _tables(found, console)
    else:
        print("\n".join("\t".join(cells) for cells in (COLUMNS, *map(_cells, found))))


def _cells(line: Line) -> tuple[str, ...]:
    entry = line.entry
    return (
        entry.place,
        entry.name,
        entry.table.metric,
        entry.table.unit,
        line.entry.printed,
        *map(line.figure, TIERS),
        line.seeds,
        line.judgement.word,
        line.cost,
        entry.row.plan or "-",
        entry.row.contender or "-",
    )


def by_table(found: Sequence[Line]) -> Iterator[tuple[Line, list[Line]]]:
    """The lines of each table, with the first of them."""
    for _, group in itertools.groupby(found, key=lambda line: line.entry.place):
        members = list(group)
        yield members[0], members


def _tables(found: Sequence[Line], console: "Console") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for first, members in by_table(found):
        entry = first.entry
        lower = "lower" if entry.table.goal == "min" else "higher"
        unit = entry.table.unit or entry.table.metric
        title = f"{entry.place}: {entry.table.title}, {unit} ({lower} is better)"
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title), title_justify="left")
        for name in ("row", "published", "ours", "seeds", "verdict", "cost of plan"):
            number = name in ("published", "ours", "seeds")
            grid.add_column(name, justify="right" if number else "left", no_wrap=number)
        for line in members:
            ours = [f"{tier} {line.figure(tier)}" for tier in TIERS if line.figure(tier) != "-"]
            cells = (line.entry.name, line.entry.printed, "\n".join(ours) or "-", line.seeds)
            grid.add_row(*map(Text, (*cells, line.judgement.word, line.cost)))
        console.print(grid)
