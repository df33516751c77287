"""The updates of optimizers as a picture: along a run, and as functions of the present gradient."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from metalearn.learned_optimizers.updates import Updates

INK, FAINT = "#24292f", "#d5d9de"
COLOURS = ("#2463a9", "#c0511b", "#2f7d4f")
WIDTHS = (1.5, 1.1, 0.9)
COLUMNS = 8  # small panels in a row
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "metalearn",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 4),
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def draw(found: "Updates", path: Path) -> None:
    """Two panels of updates along the run, and one of proposed updates for each step, into an .svg file.

    The panels of a kind have one scale; gradient descent is left out of the second kind, being a line.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = -(-len(found.gradients[0]) // COLUMNS)
    with mpl.rc_context(STYLE):
        canvas = Figure(figsize=(9.2, 2.9 + 1.25 * rows), layout="constrained")
        halves = np.asarray(canvas.subfigures(2, 1, height_ratios=(2.7, 0.2 + 1.25 * rows)))
        _along(halves[0], found)
        _proposed(halves[1], found, rows)
        canvas.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def _along(canvas: Any, found: "Updates") -> None:
    panels = canvas.subplots(1, len(found.coordinates), squeeze=False)[0]
    steps = range(1, 1 + len(found.gradients[0]))
    for place, (axes, name) in enumerate(zip(panels, found.coordinates, strict=True)):
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for (label, updates), colour, width in zip(found.updates.items(), COLOURS, WIDTHS, strict=True):
            axes.plot(steps, updates[place], color=colour, linewidth=width, label=label)
        axes.set(xlabel="step", ylabel="update")
        axes.set_title(name, fontsize=9.5, loc="left")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(COLOURS))


def _proposed(canvas: Any, found: "Updates", rows: int) -> None:
    shown = {name: curves for name, curves in found.proposed.items() if name != "SGD"}
    panels = canvas.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for step, axes in enumerate(panels):
        if step >= len(found.gradients[0]):
            axes.set_axis_off()
            continue
        axes.axhline(0, color=FAINT, linewidth=0.6)
        axes.axvline(0, color=FAINT, linewidth=0.6)
        for curves, colour, width in zip(shown.values(), COLOURS, WIDTHS, strict=False):
            axes.plot(found.varied, curves[step], color=colour, linewidth=width)
        axes.set_title(f"step {step + 1}", fontsize=7.5, loc="left", pad=1)
        axes.tick_params(labelsize=7.5, length=2)
    canvas.supxlabel(f"present gradient of {found.coordinates[0]}, all before it as it was", fontsize=9.5)
    canvas.supylabel("proposed update", fontsize=9.5)
