"""Pictures of alpha: how strong each operation is on each edge, and which of them were chosen over time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from metalearn.darts.draw import colour_of
from metalearn.darts.space import Choices
from metalearn.tree import Tree

ROW, COLUMN, TICK = 0.3, 0.85, 0.22  # inches: an edge, an operation, a measurement
LEFT, TOP, BOTTOM, RIGHT = 0.8, 0.4, 1.05, 1.4  # inches around a panel
EMPTY = "#eeeeee"
TITLES = {"normal": "normal cell", "reduce": "reduction cell", "cell": "recurrent cell"}


def heat_maps(strengths: Tree, chosen: Tree, choices: dict[str, Choices]) -> Any:
    """A panel for each kind of cell: edges by operations, with numbers; what is chosen is framed.

    `strengths` and the booleans `chosen` are [edge operation], by kind of cell.
    """
    sizes = [(len(c.operations) * COLUMN, len(c.targets) * ROW) for c in choices.values()]
    canvas, panels = _panels(sizes)
    for axes, (kind, choice) in zip(panels, choices.items(), strict=True):
        values = strengths[kind].numpy()
        shares = values / max(float(values.max()), 1e-12)
        _cells(axes, _blue(shares))
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if shares[row, column] > 0.6 else "#222222"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        for row, column in np.argwhere(chosen[kind].numpy()):
            axes.add_patch(_frame(row, column))
        axes.set_xticks(range(len(choice.operations)), choice.operations, rotation=40, ha="right", fontsize=8)
        _edges(axes, kind, choice)
    return canvas


def strip(steps: Sequence[int], chosen: Sequence[Tree], choices: dict[str, Choices]) -> Any:
    """A panel for each kind of cell: time to the right, a row an edge, coloured by the operation kept on it.

    `chosen` are booleans [edge operation] by kind of cell, one for each of `steps`.
    """
    sizes = [(max(3.0, len(steps) * TICK), len(choice.targets) * ROW) for choice in choices.values()]
    canvas, panels = _panels(sizes)
    for axes, (kind, choice) in zip(panels, choices.items(), strict=True):
        table = np.stack([masks[kind].numpy() for masks in chosen], axis=1)  # edge, time, operation
        _cells(axes, _coloured(table, choice))
        shown = np.unique(np.linspace(0, len(steps) - 1, min(8, len(steps))).round().astype(int))
        axes.set_xticks(shown, [f"{steps[place]:,}" for place in shown], fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        _edges(axes, kind, choice)
        _legend(axes, [name for place, name in enumerate(choice.operations) if table[:, :, place].any()])
    return canvas


def _panels(sizes: list[tuple[float, float]]) -> tuple[Any, list[Any]]:
    """A figure with panels of these inner sizes, one below the other."""
    from matplotlib.figure import Figure

    width = LEFT + max(size[0] for size in sizes) + RIGHT
    height = sum(TOP + size[1] + BOTTOM for size in sizes)
    canvas, top, panels = Figure(figsize=(width, height)), height, []
    for inner in sizes:
        top -= TOP + inner[1]
        panels.append(canvas.add_axes((LEFT / width, top / height, inner[0] / width, inner[1] / height)))
        top -= BOTTOM
    return canvas, panels


def _cells(axes: Any, colours: Float[np.ndarray, "row column rgb"]) -> None:
    """A rectangle for each, the first row on top: pages show vectors, and no image inside a picture."""
    from matplotlib.patches import Rectangle

    rows, columns = colours.shape[:2]
    for row, column in np.ndindex(rows, columns):
        place = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, facecolor=tuple(colours[row, column].tolist()), linewidth=0))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def _blue(shares: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column rgb"]:
    """White for 0 to dark blue for 1."""
    import matplotlib as mpl

    return mpl.colormaps["Blues"](0.9 * shares)[..., :3]


def _edges(axes: Any, kind: str, choice: Choices) -> None:
    """Rows named source to target, nodes parted by lines."""
    inputs = ("x, h",) if kind == "cell" else ("k-2", "k-1")
    names = [
        f"{inputs[source] if source < len(inputs) else source} → {target}"
        for source, target in zip(choice.sources, choice.targets, strict=True)
    ]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title(TITLES[kind], fontsize=10)
    for row in range(1, len(names)):
        if choice.targets[row] != choice.targets[row - 1]:
            axes.axhline(row - 0.5, color="#888888", linewidth=0.8)
    axes.tick_params(length=0)


def _frame(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor="#b3470f", linewidth=1.8)


def _coloured(table: np.ndarray, choice: Choices) -> np.ndarray:
    """[edge time rgb]: the colour of the operation that is set, of no operation where none is."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(shade(name)) for name in choice.operations])
    picked = colours[table.argmax(axis=2)]
    return np.where(table.any(axis=2, keepdims=True), picked, np.array(to_rgb(EMPTY)))


def shade(operation: str) -> str:
    """The colour of an operation's kind, lighter for a 3x3 window so that sizes are told apart."""
    from matplotlib.colors import to_hex, to_rgb

    light = operation.endswith("3x3") and not operation.startswith("max")
    red, green, blue = (part + (1 - part) * 0.45 * light for part in to_rgb(colour_of(operation)))
    return to_hex((red, green, blue))


def _legend(axes: Any, names: list[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=shade(name), label=name) for name in names]
    handles.append(Patch(facecolor=EMPTY, label="not kept"))
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02)}
    axes.legend(handles=handles, fontsize=8, frameon=False, **place)
