"""The comparison as a W&B report: its table, the runs' curves in run sets, paired tests.

Through W&B's own wandb-workspaces (extra `reports`); tested against a local fake of W&B's HTTP API.
"""

from pathlib import Path
from typing import Any, cast

from metalearn.compare.model import Comparison, Group
from metalearn.compare.pairs import RULE as TESTED
from metalearn.compare.table import RULE, overview, tests
from metalearn.registry import UserError
from metalearn.report.page import Grid

SETS = 30  # configurations with a run set of their own
PLOTS = 12  # metrics that are drawn
ROWS = 200  # of a table
COLUMNS, HEIGHT = 12, 6  # a plot takes half the width of a panel grid of 24


def check() -> None:
    """Raises UserError where the extra is missing."""
    try:
        import wandb_workspaces.reports.v2  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--report needs the package wandb-workspaces ({error}): uv sync --extra reports"
        ) from None


def outline(comparison: Comparison, title: str) -> str:
    """What the report holds, in words."""
    return (
        f"{title!r}, {min(len(comparison.groups), SETS)} run sets, "
        f"{min(len(comparison.curved), PLOTS)} plots, {len(comparison.pairs)} paired tests"
    )


def save(comparison: Comparison, entity: str, project: str, title: str) -> str:
    """Make the report at W&B; returns its address. Raises UserError."""
    check()
    import wandb_workspaces.reports.v2 as wr

    runs = sum(len(group.entries) for group in comparison.groups)
    words = f"{runs} runs of {len(comparison.groups)} configurations"
    report = wr.Report(
        project=project, entity=entity, title=title[:128], description=words, width="fluid",
        blocks=blocks(comparison, entity, project),
    )  # fmt: skip
    try:
        report.save()
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"publish: the runs are at W&B, the report is not ({type(error).__name__}: {text}); run it again"
        ) from None
    return str(report.url)


def blocks(comparison: Comparison, entity: str, project: str) -> list[Any]:
    """The report's parts, from top to bottom."""
    import wandb_workspaces.reports.v2 as wr

    plots = [_plot(metric, place) for place, metric in enumerate(comparison.curved[:PLOTS])]
    sets = [_run_set(group, entity, project) for group in comparison.groups[:SETS]]
    tested, words = tests(comparison), cast("list[Any]", list(comparison.words))
    notices: list[Any] = [
        *comparison.notices,
        *(f"{metric}: {stamp}" for metric, stamp in comparison.stamps.items()),
    ]
    return [
        wr.TableOfContents(),
        *([wr.UnorderedList(items=notices)] if notices else []),
        wr.H2("Results"), wr.MarkdownBlock(markdown(overview(comparison))), wr.P(RULE),
        *([wr.H2("Curves"), wr.PanelGrid(runsets=sets, panels=plots)] if plots else []),
        *([wr.H2("Paired tests"), wr.MarkdownBlock(markdown(tested)), wr.P(TESTED)] if tested else []),
        *([wr.H2("Differences"), wr.UnorderedList(items=words)] if comparison.words else []),
    ]  # fmt: skip


def _plot(metric: str, place: int) -> Any:
    import wandb_workspaces.reports.v2 as wr

    layout = wr.Layout(x=COLUMNS * (place % 2), y=HEIGHT * (place // 2), w=COLUMNS, h=HEIGHT)
    return wr.LinePlot(
        title=metric, x="step", y=[metric], layout=layout, groupby="Group", groupby_aggfunc="mean",
        groupby_rangefunc="stddev", max_runs_to_show=100,
    )  # fmt: skip


def _run_set(group: Group, entity: str, project: str) -> Any:
    """The configuration's runs: those of its W&B groups that have its runs' names."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    groups = {str(entry.config.get("log.group") or entry.config.get("name")) for entry in group.entries}
    names = sorted({Path(entry.place).name for entry in group.entries})
    filters = [expr.Metric("Group").isin(sorted(groups)), expr.Metric("Name").isin(names)]
    return wr.Runset(entity=entity, project=project, name=group.label[:100], filters=filters)


def markdown(grid: Grid) -> str:
    """A table as Markdown, its first rows where there are many."""
    places = range(len(grid.header))
    lines = [_line(grid.header), _line("---:" if place in grid.numeric else "---" for place in places)]
    lines += [_line(map(_text, row)) for row in grid.rows[:ROWS]]
    if len(grid.rows) > ROWS:
        lines.append(f"\nAnd {len(grid.rows) - ROWS} more rows: `metalearn compare` has all.")
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Any) -> str:
    return str(cell).replace("|", "\\|").replace("<", "&lt;").replace("\n", "; ")
