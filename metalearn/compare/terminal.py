"""A comparison on a terminal, and as lines for other programs where there is none."""

import sys
from collections.abc import Sequence
from typing import Any

from metalearn.compare.model import Comparison, Group, Pair
from metalearn.compare.table import RULE, broken, kinds, options, overview, wrapped
from metalearn.report.page import Grid
from metalearn.report.terminal import COLOURS

WIDTH = 100  # of the tables; a wider terminal has more
LINES = 40  # of a table, and of sentences of a kind; files have all
TESTS = 12  # sentences


def show(comparison: Comparison) -> None:
    """Tables, tests, differences and notices; where stdout is no terminal, values with tabs between them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        for line in lines(comparison):
            sys.stdout.write("\t".join(line) + "\n")
        console = Console(highlight=False, stderr=True, width=WIDTH, soft_wrap=True)
        for metric, stamp in comparison.stamps.items():
            console.print(Text(f"{metric}: {stamp}", style="bold yellow"))
    else:
        _tables(console, comparison)
    _sentences(console, comparison)


def lines(comparison: Comparison) -> list[list[str]]:
    """One line a configuration: options, states, and of each metric mean, deviation, interval and runs."""
    columns = [(metric, kind) for metric in comparison.metrics for kind in kinds(comparison, metric)]
    parts = ("", " deviation", " low", " high", " runs")
    heads = [f"{metric}{' best' * (kind == 'best')}{part}" for metric, kind in columns for part in parts]
    first = [
        "configuration",
        *comparison.keys,
        "runs",
        "finished",
        *heads,
        "parameters",
        "seconds",
        "comparable",
    ]
    return [first, *(_line(comparison, group, columns) for group in comparison.groups)]


def say(text: str) -> None:
    """A line beside the table."""
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False, stderr=not Console().is_terminal).print(Text(text), soft_wrap=True)


def _line(comparison: Comparison, group: Group, columns: list[tuple[str, str]]) -> list[str]:
    values = [text for metric, kind in columns for text in _values(group, metric, kind)]
    finished = sum(entry.state == "finished" for entry in group.entries)
    options = [group.options.get(key, "") for key in comparison.keys]
    seconds = "" if group.seconds is None else f"{group.seconds:.3f}"
    comparable = "yes" if all(entry.comparable for entry in group.entries) else "no"
    return [
        group.label,
        *options,
        str(len(group.entries)),
        str(finished),
        *values,
        group.parameters,
        seconds,
        comparable,
    ]


def _values(group: Group, metric: str, kind: str) -> list[str]:
    estimate = getattr(group, kind).get(metric)
    if estimate is None:
        return [""] * 5
    mean, deviation, half, values = estimate
    bounds = ["", ""] if half is None else [repr(mean - half), repr(mean + half)]
    return [repr(mean), "" if deviation is None else repr(deviation), *bounds, str(len(values))]


def _tables(console: Any, comparison: Comparison) -> None:
    grid, told = overview(comparison, full=False), options(comparison)
    width = max(console.width, 60)
    for number, columns in enumerate(wrapped(grid, width)):
        _table(console, grid, columns, comparison.title if number == 0 else "")
    if told is not None:
        _table(console, told, (0, 1), "")
    console.print(RULE, style="dim")


def _table(console: Any, grid: Grid, columns: Any, title: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left",
        title_style="bold",
    )  # fmt: skip
    for number in columns:
        justify = "right" if number in grid.numeric else "left"
        table.add_column(Text(broken(str(grid.header[number]))), justify=justify, overflow="fold")
    for row in grid.rows[:LINES]:
        table.add_row(*(_cell(str(row[number])) for number in columns))
    console.print(table)
    if len(grid.rows) > LINES:
        console.print(f"and {len(grid.rows) - LINES} more: --output DIR writes all of them")


def _cell(text: str) -> Any:
    """What stands below the first line is faint."""
    from rich.text import Text

    first, newline, rest = text.partition("\n")
    return Text.assemble(first, (newline + rest, "dim"))


def _sentences(console: Any, comparison: Comparison) -> None:
    from rich.text import Text

    tested = [pair for pair in comparison.pairs if pair.claim.verdict != "none"]
    for pair in _telling(tested):
        console.print(Text(pair.claim.statement, style=COLOURS[pair.claim.verdict]))
    if len(tested) > TESTS:
        console.print(f"and {len(tested) - TESTS} more tests: --output DIR writes all of them")
    if len(tested) < len(comparison.pairs):
        count = len(comparison.pairs) - len(tested)
        console.print(f"{count} pair{'s' * (count != 1)} without a claim: {_lacking(comparison)}")
    for sentence in comparison.words[:LINES]:
        console.print(Text(sentence))
    for notice in comparison.notices:
        console.print(Text(notice, style="bold yellow"))


def _lacking(comparison: Comparison) -> str:
    """Why pairs have no claim, each reason once."""
    reasons = [pair.claim.statement for pair in comparison.pairs if pair.claim.verdict == "none"]
    return "; ".join(dict.fromkeys(reason.rpartition(", ")[2] for reason in reasons))


def _telling(pairs: Sequence[Pair]) -> list[Pair]:
    """All of a few; of many those with the least p."""
    if len(pairs) <= TESTS:
        return list(pairs)
    order = sorted(pairs, key=lambda pair: 2.0 if pair.probability is None else pair.probability)
    return order[:TESTS]
