"""Bias and cosine against milliseconds."""

import math
from collections.abc import Sequence
from pathlib import Path

from metalearn.diagnose.table import Row

MARKS = "osD^vP*X<>phd8"


def draw(title: str, rows: Sequence[Row], folder: Path) -> None:
    """diagnose.svg and diagnose.png; estimators without a value are not in them."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    shown = [row for row in rows if row.accuracy is not None and row.milliseconds is not None]
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    below, above = figure.subplots(1, 2)
    floor = _floor(shown)
    for number, row in enumerate(shown):
        assert row.accuracy is not None
        assert row.milliseconds is not None
        look = {"marker": MARKS[number % len(MARKS)], "color": f"C{number % 10}", "markersize": 8}
        look |= {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.5}
        place = max(row.accuracy.bias, floor)
        error = row.accuracy.floor or None
        lower = error and min(error, place * 0.99)
        bars = None if error is None else [[lower], [error]]
        below.errorbar([row.milliseconds], [place], yerr=bars, label=row.label, capsize=3, **look)
        above.plot([row.milliseconds], [row.accuracy.cosine], label=row.label, **look)
    below.set_yscale("log")
    below.set_ylabel(f"bias / norm of exact   (0 is drawn at {floor:.0e})")
    above.set_ylabel("cosine with exact")
    for axes in (below, above):
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.margins(0.1)
    handles, labels = above.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    rcParams["svg.hashsalt"] = "metalearn"
    figure.savefig(folder / "diagnose.svg", metadata={"Date": None})
    figure.savefig(folder / "diagnose.png", dpi=130)


def _floor(rows: Sequence[Row]) -> float:
    """Where a bias of zero is drawn: a decade below the smallest other one, and not above 1e-8."""
    found = [row.accuracy.bias for row in rows if row.accuracy is not None]
    found = [value for value in found if math.isfinite(value) and value > 0]
    return min([1e-8, *(10.0 ** math.floor(math.log10(value)) / 10 for value in found)])
