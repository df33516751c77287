"""Line charts over seeds as SVG; the same numbers give the same bytes."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# colours of a file of its own; where a page takes the chart in, its CSS variables take their place
INK, FAINT = "#24292f", "#d5d9de"
SERIES = ("#2463a9", "#c0511b", "#2f7d4f", "#7a4ba0", "#94700a", "#1b7c89", "#b0396d", "#66707b")
VARIABLES = {INK: "--ink", FAINT: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # once all colours are used
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "metalearn",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}


class Band(NamedTuple):
    """One line of a chart: the middle of several seeds and how far they deviate."""

    label: str
    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    colour: int  # place in SERIES, with dashes when they run out


def band(
    label: str, curves: Sequence[tuple[Sequence[float], Sequence[float | None]]], log: bool, colour: int
) -> Band:
    """Mean and sample standard deviation of curves (x, y) at the x that all of them have.

    On a log axis, where all values are positive: geometric mean, and divided and multiplied by the geometric
    deviation.
    """
    shared = set(curves[0][0]).intersection(*(x for x, _ in curves[1:]))
    x = np.array(sorted(shared), dtype=float)
    aligned = [dict(zip(xs, ys, strict=True)) for xs, ys in curves]
    y = np.array([[_number(curve[at]) for at in x] for curve in aligned])
    geometric = log and bool(np.all(y > 0))
    y = np.log(y) if geometric else y
    middle = y.mean(axis=0)
    deviation = y.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(middle)
    back = np.exp if geometric else np.asarray
    return Band(
        label, x, back(middle), back(middle - deviation), back(middle + deviation), len(curves), colour
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def chart(bands: Sequence[Band], x_label: str, y_label: str, log: bool) -> str:
    """A chart with labelled axes and, for two lines or more, a legend. Returns SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.3), layout="constrained")
        axes = figure.add_subplot()
        for line in bands:
            colour, dashes = _look(line.colour)
            marker = "o" if len(line.x) < 2 else ""
            if line.seeds > 1:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(line.x, line.middle, color=colour, linestyle=dashes, label=line.label, marker=marker)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.01)
        if all(np.all(line.x == np.round(line.x)) for line in bands):
            axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if log:
            _log_axis(axes)
        if len(bands) > 1:
            _legend(figure, axes, bands)
        return _svg(figure)


def _look(number: int) -> tuple[str, Any]:
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]


def _log_axis(axes: Any) -> None:
    """Plain numbers at the decades, and at 2 and 5 between them where the axis holds fewer than two."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="clip")
    low, high = axes.get_ylim()
    numbers = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(numbers)
    if high / low < 100:
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter(numbers)
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, axes: Any, bands: Sequence[Band]) -> None:
    """Above the axes, in as many columns as its words have room for."""
    longest = max(len(line.label) for line in bands)
    columns = max(1, min(len(bands), 66 // (longest + 6)))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=columns,
        handlelength=1.5,
        columnspacing=1.4,
        fontsize=9.5,
    )


def _svg(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return file.getvalue()
