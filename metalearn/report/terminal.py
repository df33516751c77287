"""Tables on a terminal."""

from collections.abc import Sequence
from pathlib import Path

from metalearn.report.page import Grid, Link

COLOURS = {"better": "green", "worse": "red", "unclear": "yellow", "none": "yellow"}
WIDTH = 160  # of a log file


def show(
    title: str, grid: Grid, statements: Sequence[tuple[str, str]], notices: Sequence[str], page: Path | None
) -> None:
    """Print a table, then (verdict, sentence) lines, notices and where the page is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    table = Table(
        title=Text(title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold"
    )
    for number, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if number in grid.numeric else "left")
    for row in grid.rows:
        table.add_row(*(Text(cell.text if isinstance(cell, Link) else cell) for cell in row))
    console.print(table)
    for verdict, sentence in statements:
        console.print(Text(sentence, style=COLOURS[verdict]))
    for notice in notices:
        console.print(Text(notice, style="bold yellow"))
    if page is not None:
        console.print(Text(f"report: {page}"), soft_wrap=True)
