"""`metalearn list`: what a configuration may name, and what is here."""

import inspect
import json
from pathlib import Path

from metalearn import registry
from metalearn.compose import file_of, options

GROUP_OF = {f"{group}s": group for group in registry.GROUPS}


def show(what: str, runs: Path, data_dir: Path) -> None:
    """Print one table: the names of a group, recipes, problems or runs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, rows = _rows(what, runs, data_dir)
    console = Console(soft_wrap=True)
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if console.is_terminal:
        console.print(table)
    else:
        console.print("\n".join("\t".join(row) for row in rows), markup=False, highlight=False)


def _rows(what: str, runs: Path, data_dir: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    if what == "recipes":
        return ["recipe", "what"], [(name, _first_comment(f"recipe/{name}")) for name in options("recipe")]
    if what == "mixtures":  # they differ by their files alone
        mixtures = [name for name in options("mixture") if name != "none"]
        return ["mixture", "what"], [(name, _first_comment(f"mixture/{name}")) for name in mixtures]
    if what == "problems":
        problems = [name for name in options("diagnose") if name != "run"]  # which is for --run
        return ["problem", "what"], [(name, _first_comment(f"diagnose/{name}")) for name in problems]
    if what == "runs":
        return ["run", "state", "step"], _runs(runs)
    names = registry.names(GROUP_OF[what])
    said = [(name, _first_line(GROUP_OF[what], name)) for name in names]
    if what != "tasks":
        return [what.removesuffix("s"), "what"], said
    from tasks.catalogue import availability

    return ["task", "here", "what"], [(name, availability(name, data_dir), text) for name, text in said]


def _first_line(group: str, name: str) -> str:
    return (inspect.getdoc(registry.entry(group, name).options) or "").split("\n")[0]


def _first_comment(option: str) -> str:
    lines = file_of(option).read_text().splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""


def _runs(runs: Path) -> list[tuple[str, ...]]:
    rows = []
    for path in sorted(runs.rglob("status.json")):
        try:
            status = json.loads(path.read_text())
            row = str(status["state"]), str(status["step"])
        except (OSError, ValueError, KeyError, TypeError):
            row = "unreadable status.json", ""
        rows.append((str(path.parent), *row))
    return rows
