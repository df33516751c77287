"""A replicate plan held against the runs that it made: rows, claim, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from metalearn import records
from metalearn.records import Run, targets
from metalearn.registry import UserError, closest
from metalearn.report.claims import Claim, Summary, claim, summary
from metalearn.report.selections import Selection, made

FIGURE_KEYS = (
    "title",
    "label",
    "x_label",
    "log",
    "stage",
    "stages",
    "selected",
    "curve",
    "artifact",
    "picture",
)
KINDS = ("curve", "artifact", "picture")


class TableOptions(Protocol):
    """The `table` block of a plan."""

    metric: str
    goal: str
    unit: str
    rows: dict[str, str]  # contender: stage, or "stage metric" for another metric than the table's
    claims: dict[str, list[str]]  # note: the contenders that it holds against each other


class Plan(Protocol):
    """What `metalearn replicate` has read from a recipe."""

    name: str
    family: str
    seeds: list[int]
    tier: str  # its budget; empty where it has but one
    stages: Any  # a mapping whose keys are the names
    figures: list[dict[str, Any]]

    @property
    def table(self) -> TableOptions:
        """The `table` block."""
        ...

    @property
    def selections(self) -> Sequence[str]:
        """The stages that are no runs."""
        ...

    def paired(self, stage: str) -> bool:
        """Whether a stage's runs with different seeds share nothing."""
        ...


def stage_of(row: str) -> str:
    """The stage that a row of a table is of."""
    return row.partition(" ")[0]


def metric_of(row: str, table: TableOptions) -> str:
    """The metric that a row of a table shows: its own, or the table's."""
    return row.partition(" ")[2] or table.metric


Folders = Mapping[str, Mapping[int, Path]]  # stage -> seed -> run directory


class Entry(NamedTuple):
    """One run that a plan asks for, there or not."""

    stage: str
    seed: int
    path: Path
    run: Run | None
    state: str
    message: str


class Row(NamedTuple):
    """One contender of a plan's table, over its finished runs."""

    family: str
    task: str
    contender: str
    metric: str
    unit: str
    values: dict[int, float]  # by seed
    parameters: tuple[int, ...]
    seconds: float | None  # mean of one run
    stamp: str
    paper: Mapping[str, Any] | None  # what is published of the metric

    @property
    def summary(self) -> Summary | None:
        return summary(list(self.values.values())) if self.values else None


@dataclass(frozen=True)
class Table:
    """What one plan came to."""

    plan: Plan
    entries: list[Entry]
    rows: list[Row]
    claims: list[Claim]
    selections: list[Selection]

    def finished(self, stage: str) -> list[Run]:
        """The runs of a stage that got to their end, by seed."""
        return [entry.run for entry in self.entries if entry.stage == stage and entry.run and _done(entry)]

    @property
    def unfinished(self) -> list[Entry]:
        return [entry for entry in self.entries if not _done(entry)]


def _done(entry: Entry) -> bool:
    return entry.state == "finished"


def check(plan: Plan) -> None:
    """Refuse a plan whose table or figures name what is not there. Raises UserError."""
    if plan.table.goal not in ("min", "max"):
        raise UserError(f"replicate.table.goal: got {plan.table.goal!r}, must be one of min, max")
    for stage in plan.table.rows.values():
        _check_stage(plan, stage_of(stage), "table.rows")
    for note, contenders in plan.table.claims.items():
        for contender in contenders:
            if contender not in plan.table.rows:
                allowed = ", ".join(closest(contender, list(plan.table.rows)))
                raise UserError(
                    f"replicate.table.claims.{note}: no row is called {contender!r}; choose one of: {allowed}"
                )
    for number, figure in enumerate(plan.figures):
        place = f"figures[{number}]"
        for key in figure:
            if key not in FIGURE_KEYS:
                allowed = ", ".join(closest(str(key), list(FIGURE_KEYS)))
                raise UserError(f"replicate.{place}.{key}: no such option; choose one of: {allowed}")
        kinds = [kind for kind in KINDS if kind in figure]
        if len(kinds) != 1 or "title" not in figure:
            raise UserError(
                f"replicate.{place}: got {', '.join(map(str, figure))}; must have a title and one of "
                f"{', '.join(KINDS)}"
            )
        for stage in stages_of(figure).values():
            _check_stage(plan, stage, place)
        selected = figure.get("selected")  # the selection whose run is pictured rather than another
        if selected is not None and selected not in plan.selections:
            allowed = ", ".join(plan.selections) or "none"
            raise UserError(
                f"replicate.{place}.selected: got {selected!r}, must be a selection; choose one of: {allowed}"
            )


def stages_of(figure: Mapping[str, Any]) -> dict[str, str]:
    """Label -> stage of a figure; `stage: x` and `stages: [x, y]` label by the stage's name."""
    stages = figure.get("stages", figure.get("stage", []))
    if isinstance(stages, str):
        return {stages: stages}
    return dict(stages) if isinstance(stages, Mapping) else {stage: stage for stage in stages}


def _check_stage(plan: Plan, stage: str, place: str) -> None:
    if stage not in plan.stages:
        allowed = ", ".join(closest(str(stage), list(plan.stages)))
        raise UserError(f"replicate.{place}: no stage is called {stage!r}; choose one of: {allowed}")


def evaluate(plan: Plan, folders: Folders) -> Table:
    """Read the plan's runs. Runs that are missing or did not finish are listed and count nowhere."""
    check(plan)
    entries = [
        _entry(stage, seed, path)
        for stage in plan.stages
        if stage not in plan.selections
        for seed, path in folders[stage].items()
    ]
    selections = [made(stage, path) for stage in plan.selections for path in folders[stage].values()]
    table = Table(plan, entries, [], [], selections)
    rows = [_row(table, contender, row) for contender, row in plan.table.rows.items()]
    return Table(plan, entries, rows, _claims(plan, rows), selections)


def _claims(plan: Plan, rows: Sequence[Row]) -> list[Claim]:
    """The first row against all others, or what `table.claims` names, each with its note."""
    values = {row.contender: row.values for row in rows}
    if len(values) == 1:
        return []
    table = plan.table
    return [
        claim(
            {name: values[name] for name in contenders},
            table.goal,
            table.unit,
            note,
            all(plan.paired(stage_of(table.rows[name])) for name in contenders),
        )
        for note, contenders in (table.claims or {"": list(values)}).items()
    ]


def _entry(stage: str, seed: int, path: Path) -> Entry:
    if not path.exists():
        return Entry(stage, seed, path, None, "missing", "never started")
    try:
        run = records.read(path)
    except UserError as error:
        return Entry(stage, seed, path, None, "unreadable", str(error))
    return Entry(stage, seed, path, run, run.state, run.message)


def _row(table: Table, contender: str, row: str) -> Row:
    """A row with a metric of its own says nothing of parameters: they are those of the run's first result."""
    metric, runs = metric_of(row, table.plan.table), table.finished(stage_of(row))
    sized = runs if metric == table.plan.table.metric else []
    with_value = [run for run in runs if metric in run.metrics]
    seconds = [run.seconds for run in runs if run.seconds is not None]
    known = [entry.run for entry in table.entries if entry.run]
    return Row(
        family=table.plan.family,
        task=(runs or known)[0].task if runs or known else "-",
        contender=contender,
        metric=metric,
        unit=table.plan.table.unit,
        values={run.seed: run.last(metric) for run in with_value},
        parameters=tuple(run.parameters for run in sized if run.parameters is not None),
        seconds=sum(seconds) / len(seconds) if seconds else None,
        stamp=next((run.stamp(metric) for run in runs), ""),
        paper=next((paper for run in runs if (paper := _published(run, metric))), None),
    )


def _published(run: Run, metric: str) -> Mapping[str, Any] | None:
    found = (paper for paper in targets(run) if paper["metric"] == metric and paper["value"] is not None)
    return next(found, None)


def remarks(table: Table) -> Sequence[str]:
    """What a reader must know of the rows: their scale, whose noise ± is, what lacks the metric."""
    tier, lines = table.plan.tier, []
    if tier not in ("", "paper") and any(row.paper for row in table.rows):
        lines.append(f"tier={tier} is not the paper's scale; published values are shown, not compared with.")
    rows = table.plan.table.rows
    single = [name for name, row in rows.items() if not table.plan.paired(stage_of(row))]
    if single:
        lines.append(
            f"{', '.join(single)}: ± is the noise of training what was selected once, not that of searching."
        )
    for contender, row in rows.items():
        metric = metric_of(row, table.plan.table)
        for run in table.finished(stage_of(row)):
            if metric not in run.metrics:
                there = ", ".join(closest(metric, run.metrics)) or "none"
                lines.append(f"{contender}, seed {run.seed}: has no metric {metric!r}; it has: {there}")
    return lines
