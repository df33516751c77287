"""A replication: claims, one table, the figures of every plan, and where all of it comes from."""

from collections.abc import Sequence
from pathlib import Path

from metalearn.records import Run
from metalearn.report import drawings, origin
from metalearn.report.claims import RULE, published
from metalearn.report.numbers import duration, span
from metalearn.report.page import Block, Command, Document, Gallery, Grid, Section, Statements, Words, write
from metalearn.report.plan import Folders, Plan, Row, Table, evaluate, remarks
from metalearn.report.scores import scores
from metalearn.report.terminal import show

HEADER = (
    "family", "task", "contender", "metric", "mean ± deviation", "runs", "seeds", "parameters", "time a run"
)  # fmt: skip
PAPER = HEADER.index("runs")  # where the published value stands, if any row has one
COLUMNS = ("plan", "stage")
NUMERIC = frozenset({4, 5, 6, 7, 8})


def combine(name: str, plans: Sequence[tuple[Plan, Folders]], folder: Path, seconds: float) -> None:
    """Print the table and the claims; write report.md and report.html into `folder`.

    Runs that are missing or did not finish are shown, count in no mean, and stop nothing.
    Raises UserError for a plan that names what is not there.
    """
    tables = [evaluate(plan, folders) for plan, folders in plans]
    page = write(_document(name, tables, folder, seconds), folder, "report")
    show(
        _title(name, tables),
        results(tables),
        [(claim, text) for claim, _, text in _statements(tables)],
        _notices(tables),
        page,
    )


def _title(name: str, tables: Sequence[Table]) -> str:
    tiers = dict.fromkeys(table.plan.tier for table in tables if table.plan.tier)
    return f"{name}, tier={' and '.join(tiers)}" if tiers else name


def results(tables: Sequence[Table]) -> Grid:
    """One row a contender; a family and task that repeat are left blank."""
    rows, before = [], ("", "")
    for row in (row for table in tables for row in table.rows):
        place = (row.family, row.task)
        rows.append((*(("", "") if place == before else place), *_cells(row)))
        before = place
    papers = [published(row.paper) if row.paper else "-" for table in tables for row in table.rows]
    if set(papers) <= {"-"}:
        return Grid(HEADER, rows, "", NUMERIC)
    rows = [(*row[:PAPER], paper, *row[PAPER:]) for row, paper in zip(rows, papers, strict=True)]
    return Grid((*HEADER[:PAPER], "paper", *HEADER[PAPER:]), rows, "", NUMERIC | {max(NUMERIC) + 1})


def _cells(row: Row) -> tuple[str, ...]:
    value = str(row.summary) if row.summary else "-"
    if row.stamp and row.summary:
        value = f"{value} ({row.stamp})"
    return (
        row.contender,
        f"{row.metric}, {row.unit}" if row.unit else row.metric,
        value,
        str(len(row.values)),
        ", ".join(map(str, sorted(row.values))) or "-",
        span(row.parameters),
        duration(row.seconds),
    )


def _statements(tables: Sequence[Table]) -> list[tuple[str, str, str]]:
    return [(claim.verdict, _subject(table), claim.statement) for table in tables for claim in table.claims]


def _subject(table: Table) -> str:
    stamps = dict.fromkeys(row.stamp for row in table.rows if row.stamp)
    return ", ".join([f"{table.plan.family} on {table.rows[0].task}", table.plan.table.metric, *stamps])


def _notices(tables: Sequence[Table]) -> list[str]:
    entries = [entry for table in tables for entry in table.entries]
    bad = [entry for table in tables for entry in table.unfinished]
    notices = [line for table in tables for line in remarks(table)]
    if bad:
        states = ", ".join(
            f"{sum(e.state == state for e in bad)} {state}" for state in dict.fromkeys(e.state for e in bad)
        )
        count = f"{len(bad)} of {len(entries)} runs did not finish ({states})"
        notices.insert(0, f"{count}; they count in no mean and no claim.")
    return notices


def _document(name: str, tables: Sequence[Table], folder: Path, seconds: float) -> Document:
    runs = [entry.run for table in tables for entry in table.entries if entry.run]
    entries = [entry for table in tables for entry in table.entries]
    count = f"{len(entries)} runs of {len(tables)} plan{'s' * (len(tables) != 1)}"
    lead = f"{count}, reported after {duration(seconds)}."
    sections = [
        Section("Results", [Statements(_statements(tables)), results(tables), Words(RULE)]),
        *_unfinished(tables, folder),
        *_scores(tables),
        *_selections(tables, folder),
        *(_plan(table) for table in tables if table.plan.figures),
        Section("Against the papers", _papers(tables)),
        Section("Provenance", _provenance(name, tables, runs, folder)),
    ]
    return Document(_title(name, tables), lead, _notices(tables), sections)


def _unfinished(tables: Sequence[Table], folder: Path) -> list[Section]:
    bad = [(table.plan.name, entry) for table in tables for entry in table.unfinished]
    return [Section("Runs that did not finish", [origin.listing(bad, folder, COLUMNS)])] if bad else []


def _scores(tables: Sequence[Table]) -> list[Section]:
    blocks = scores(tables)
    return [Section("Scores of trained optimizers", blocks)] if blocks else []


def _selections(tables: Sequence[Table], folder: Path) -> list[Section]:
    grids = [
        origin.selections(table.plan.name, table.selections, folder) for table in tables if table.selections
    ]
    return [Section("Selections", grids)] if grids else []


def _plan(table: Table) -> Section:
    title = f"{table.plan.family}: {table.rows[0].task}"
    return Section(title, [Gallery(drawings.of_plan(table))])


def _papers(tables: Sequence[Table]) -> list[Block]:
    contenders = [
        (f"{table.plan.family}, {stage}", table.finished(stage), _scale(table.plan.tier))
        for table in tables
        for stage in table.plan.stages
    ]
    grid = origin.papers(contenders)
    if grid is None:
        return [
            Words("None of these runs is held against a published figure: their scale is not the papers'.")
        ]
    rule = (
        "A verdict takes two seeds or more on the published data: our mean agrees where its 95 % t-interval "
        "meets the published value ± its spread."
    )
    return [grid, Words(rule)]


def _scale(tier: str) -> str:
    """Why a tier's figures are held against no paper's; empty where they are."""
    return "" if tier in ("", "paper") else f"no verdict: tier={tier} is not the paper's scale"


def _provenance(name: str, tables: Sequence[Table], runs: Sequence[Run], folder: Path) -> list[Block]:
    everything = [(table.plan.name, entry) for table in tables for entry in table.entries]
    seeds = sorted({seed for table in tables for seed in table.plan.seeds})
    tiers = "".join(dict.fromkeys(f" tier={table.plan.tier}" for table in tables if table.plan.tier))
    made: list[Block] = [origin.machine(runs), origin.data(runs)] if runs else [Words("No run has started.")]
    return [
        Words("Run it again; finished runs are kept:"),
        Command(f"metalearn replicate {name} --seeds {','.join(map(str, seeds))}{tiers}"),
        *made,
        origin.listing(everything, folder, COLUMNS, f"All {len(everything)} runs"),
        *([origin.commands(runs)] if runs else []),
    ]
