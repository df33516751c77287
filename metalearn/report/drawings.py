"""The figures that a plan names, and those of runs put side by side."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from metalearn.records import Run
from metalearn.registry import UserError
from metalearn.report.figures import band, chart
from metalearn.report.plan import Table, stage_of, stages_of

Curve = tuple[Sequence[float], Sequence[float | None]]
Colours = dict[str, int]  # the place of a line's colour, by its name


class Drawing(NamedTuple):
    """One picture with its words. `svg` is empty where there is nothing to draw, and `caption` says why."""

    title: str
    svg: str
    caption: str
    themed: bool  # drawn by us: its colours may follow the page


def of_plan(table: Table) -> list[Drawing]:
    """The plan's figures. What cannot be drawn is there with the reason: a report shows what it lacks."""
    colours = {contender: place for place, contender in enumerate(table.plan.table.rows)}
    drawings = []
    for figure in table.plan.figures:
        draw = {"curve": _curves, "artifact": _series, "picture": _picture}
        kind = next(kind for kind in draw if kind in figure)
        try:
            drawings.append(draw[kind](table, figure, colours))
        except UserError as error:
            drawings.append(Drawing(figure["title"], "", f"not drawn: {error}", True))
    return drawings


def overlay(
    title: str, lines: dict[str, list[Curve]], labels: tuple[str, str], log: bool, colours: Colours
) -> Drawing:
    """Lines by name, each over its seeds. `labels` are those of x and y.

    `colours` grows with the names, so that each keeps its colour across figures.
    """
    for name in lines:
        colours.setdefault(name, 1 + max(colours.values(), default=-1))
    bands = [band(name, curves, log, colours[name]) for name, curves in lines.items()]
    return Drawing(title, chart(bands, *labels, log), _caption(lines, log), True)


def _caption(lines: dict[str, list[Curve]], log: bool) -> str:
    counts = {len(curves) for curves in lines.values()}
    if counts == {1}:
        return "One seed." if len(lines) == 1 else "One seed each."
    least, most = min(counts), max(counts)
    middle = "Geometric mean" if log and _positive(lines) else "Mean"
    seeds = f"{most}" if least == most else f"{least} to {most}"
    return f"{middle} of {seeds} seeds; the band is one standard deviation to either side."


def _positive(lines: dict[str, list[Curve]]) -> bool:
    return all(value is not None and value > 0 for curves in lines.values() for _, y in curves for value in y)


def _finished(table: Table, figure: dict[str, Any]) -> tuple[dict[str, tuple[str, list[Run]]], str]:
    """Label -> stage and finished runs of a figure, and words for the stages that have none."""
    found = {label: (stage, table.finished(stage)) for label, stage in stages_of(figure).items()}
    absent = [label for label, (_, runs) in found.items() if not runs]
    if len(absent) == len(found):
        raise UserError(f"no finished run of {', '.join(absent)}")
    words = f" Lacking: {', '.join(absent)}, no run of which has finished." if absent else ""
    return {label: pair for label, pair in found.items() if pair[1]}, words


def _share_colour(table: Table, name: str, stage: str, colours: Colours) -> None:
    """Give the only line of a stage the colour of its contender, whatever a figure calls it."""
    contender = next((row for row, of in table.plan.table.rows.items() if stage_of(of) == stage), None)
    if contender is not None:
        colours.setdefault(name, colours[contender])


def _curves(table: Table, figure: dict[str, Any], colours: Colours) -> Drawing:
    metrics = [figure["curve"]] if isinstance(figure["curve"], str) else list(figure["curve"])
    stages, lacking = _finished(table, figure)
    lines: dict[str, list[Curve]] = {}
    for label, (stage, runs) in stages.items():
        for metric in metrics:
            name = label if len(metrics) == 1 else metric if len(stages) == 1 else f"{label}, {metric}"
            lines[name] = [steps(run, metric) for run in runs]
        if len(metrics) == 1:
            _share_colour(table, label, stage, colours)
    labels = (figure.get("x_label", "step"), figure.get("label", ", ".join(metrics)))
    drawn = overlay(figure["title"], lines, labels, figure.get("log", False), colours)
    return drawn._replace(caption=drawn.caption + lacking)


def steps(run: Run, metric: str) -> Curve:
    """A metric against steps. Raises UserError listing the metrics that exist."""
    points = run.curve(metric)
    return [point.step for point in points], [point.value for point in points]


def _series(table: Table, figure: dict[str, Any], colours: Colours) -> Drawing:
    stages, lacking = _finished(table, figure)
    lines: dict[str, list[Curve]] = {}
    x_label, y_label = "", ""
    for label, (stage, runs) in stages.items():
        mine: dict[str, list[Curve]] = {}
        for run in runs:
            found, (x_label, y_label) = series(run, figure["artifact"])
            for name, curve in found.items():
                mine.setdefault(name, []).append(curve)
        mine = {f"{label}, {name}" if name in lines else name: curves for name, curves in mine.items()}
        if len(mine) == 1:
            _share_colour(table, next(iter(mine)), stage, colours)
        lines |= mine
    labels = (figure.get("x_label", x_label), figure.get("label", y_label))
    drawn = overlay(figure["title"], lines, labels, figure.get("log", False), colours)
    return drawn._replace(caption=drawn.caption + lacking)


def series(run: Run, name: str) -> tuple[dict[str, Curve], tuple[str, str]]:
    """The curves in `artifacts/<name>` and the labels of both axes.

    The file is {"x": [...], "x_label": "step", "y_label": "loss", "series": {name: [...]}}.

    Raises UserError naming the file and what it lacks.
    """
    path = run.path / "artifacts" / name
    try:
        content = json.loads(path.read_text("utf-8"))
        x, curves = content["x"], content["series"]
        if any(len(y) != len(x) for y in curves.values()) or not curves:
            raise ValueError("every series must have as many values as x")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: holds no curves: {type(error).__name__}: {error}") from None
    return {label: (x, y) for label, y in curves.items()}, (
        content.get("x_label", ""),
        content.get("y_label", ""),
    )


def _picture(table: Table, figure: dict[str, Any], _: Colours) -> Drawing:
    name = figure["picture"]
    runs = [run for _, finished in _finished(table, figure)[0].values() for run in finished]
    chosen = _chosen(table, figure)
    for run in sorted(runs, key=lambda run: run.seed not in chosen):
        path = run.path / "artifacts" / name
        if path.suffix == ".svg" and path.exists():
            caption = f"Seed {run.seed}, which was selected." if run.seed in chosen else f"Seed {run.seed}."
            return Drawing(figure["title"], path.read_text("utf-8"), caption, False)
    there = sorted({path.name for run in runs for path in (run.path / "artifacts").glob("*.svg")})
    raise UserError(f"no finished run has artifacts/{name}; there is: {', '.join(there) or 'no .svg'}")


def _chosen(table: Table, figure: dict[str, Any]) -> list[int]:
    """The seeds with which the selection that a figure names went on."""
    reports = [made.report for made in table.selections if made.stage == figure.get("selected")]
    return [report["chosen"]["seed"] for report in reports if report]


def of_metrics(groups: dict[str, list[Run]]) -> Iterable[Drawing]:
    """Every metric's curves: one figure a quantity within one group, one figure a metric for several."""
    colours = {name: place for place, name in enumerate(groups)} if len(groups) > 1 else {}
    metrics = dict.fromkeys(metric for runs in groups.values() for run in runs for metric in run.metrics)
    figures: dict[str, dict[str, list[Curve]]] = {}
    for metric in metrics:
        for label, runs in groups.items():
            curves = [steps(run, metric) for run in runs if metric in run.metrics]
            curves = [curve for curve in curves if len(curve[0]) > 1]
            if not curves:
                continue
            split, _, quantity = metric.rpartition("/")
            title, line = (metric, label) if len(groups) > 1 else (quantity, split or quantity)
            figures.setdefault(title, {})[line] = curves
    for title, lines in figures.items():
        yield overlay(title, lines, ("step", title), False, colours)
