"""Pictures of cells: nodes in layers from left to right, every edge with its operation's name."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from metalearn.darts.genotype import INPUTS, Plan

COLUMN, ROW, MARGIN, RADIUS = 2.9, 1.2, 0.75, 0.3  # inches
BENDS = (0.0, 0.12, -0.12, 0.25, -0.25, 0.4, -0.4)  # of an edge, as parts of its length
PLACES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73)  # of a label along its edge
LABEL = np.array([1.08, 0.24])  # inches that a label takes
OPERATION_COLOURS = {
    "max": "#1f5fa8",
    "avg": "#1f5fa8",
    "skip": "#2b7d3b",
    "sep": "#b3470f",
    "dil": "#7b3aa3",
}
COLOURS = {"input": "#cfe3f5", "node": "#f4e4b8", "output": "#d3ecd0"}


class Drawn(NamedTuple):
    """An edge's bend and the centre of its label."""

    bend: float
    label: np.ndarray


def write_svg(plan: Plan, title: str, path: Path) -> None:
    """Draw the cell into an .svg file; the same cell gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "metalearn", "svg.fonttype": "path"}):
        figure(plan, title).savefig(path, format="svg", metadata={"Date": None})


def figure(plan: Plan, title: str) -> Any:
    """The cell as a matplotlib figure, one data unit an inch."""
    from matplotlib.figure import Figure

    places = _places(plan)
    corner = np.max(list(places.values()), axis=0) + MARGIN
    canvas = Figure(figsize=(corner[0], corner[1] + 0.3))
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, corner[0]), ylim=(0, corner[1] + 0.3))
    axes.axis("off")
    axes.text(corner[0] / 2, corner[1] + 0.05, title, ha="center", va="center", fontsize=12)
    output = INPUTS + len(plan.nodes)
    for node in plan.concat:
        _arrow(axes, places[node], places[output], 0.0, "#b9b9b9")
    _edges(axes, plan, places)
    for node, place in places.items():
        _node(axes, node, place, output)
    return canvas


def _places(plan: Plan) -> dict[int, np.ndarray]:
    """The centre of each node: a column for each step away from the inputs, rows spread over the height."""
    output = INPUTS + len(plan.nodes)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(output))
    for node, edges in enumerate(plan.nodes, start=INPUTS):
        graph.add_edges_from((edge.source, node) for edge in edges)
    layers = [sorted(layer) for layer in nx.topological_generations(graph)] + [[output]]
    height = 2 * MARGIN + ROW * (max(3, *(len(layer) for layer in layers)) - 1)
    places = {}
    for column, layer in enumerate(layers):
        for row, node in enumerate(layer):
            share = (row + 0.5) / len(layer) + 0.06 * (column % 2) * (len(layer) == 1)
            places[node] = np.array([MARGIN + column * COLUMN, height * (1 - share)])
    return places


def _edges(axes: Any, plan: Plan, places: dict[int, np.ndarray]) -> None:
    """Long edges first: they have the least room."""
    pairs = [(edge, node) for node, edges in enumerate(plan.nodes, start=INPUTS) for edge in edges]
    pairs.sort(key=lambda pair: -float(np.linalg.norm(places[pair[1]] - places[pair[0].source])))
    labels: list[np.ndarray] = []
    used: set[tuple[int, int, float]] = set()
    for edge, node in pairs:
        free = [bend for bend in BENDS if (edge.source, node, bend) not in used]
        drawn = _route(edge.source, node, places, labels, free)
        used.add((edge.source, node, drawn.bend))
        labels.append(drawn.label)
        colour = OPERATION_COLOURS.get(edge.operation.partition("_")[0], "#333333")
        _arrow(axes, places[edge.source], places[node], drawn.bend, colour)
        _label(axes, drawn.label, edge.operation, colour)


def _route(
    source: int, node: int, places: dict[int, np.ndarray], labels: list[np.ndarray], bends: list[float]
) -> Drawn:
    """The bend and the label's place that come least near to other nodes and labels."""
    others = [place for name, place in places.items() if name not in (source, node)]
    best, least = Drawn(bends[0], places[source]), float("inf")
    for bend, at in itertools.product(bends, PLACES):
        line = _curve(places[source], places[node], bend, np.linspace(0.1, 0.9, 17))
        label = _curve(places[source], places[node], bend, np.array([at]))[0]
        cost = abs(bend) + 0.5 * abs(at - 0.5)
        cost += sum(
            5.0 * bool(np.min(np.linalg.norm(line - place, axis=1)) < 1.4 * RADIUS) for place in others
        )
        cost += sum(20.0 * _overlap(label, other) for other in labels)
        cost += sum(20.0 * _overlap(label, place) for place in places.values())
        if cost < least:
            best, least = Drawn(bend, label), cost
    return best


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(np.abs(a - b) < LABEL))


def _curve(start: np.ndarray, end: np.ndarray, bend: float, at: np.ndarray) -> np.ndarray:
    """Points of matplotlib's arc3 connection."""
    along = end - start
    control = (start + end) / 2 + bend * np.array([along[1], -along[0]])
    t = at[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _arrow(axes: Any, start: np.ndarray, end: np.ndarray, bend: float, colour: str) -> None:
    from matplotlib.patches import FancyArrowPatch

    patch = FancyArrowPatch(
        tuple(start),
        tuple(end),
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=11,
        shrinkA=72 * RADIUS,
        shrinkB=72 * RADIUS,
        color=colour,
        linewidth=1.1,
        zorder=1 if bend == 0 else 2,
    )
    axes.add_patch(patch)


def _node(axes: Any, node: int, place: np.ndarray, output: int) -> None:
    from matplotlib.patches import Circle

    kind = "input" if node < INPUTS else "output" if node == output else "node"
    names = {0: "k-2", 1: "k-1", output: "k"}
    axes.add_patch(Circle(tuple(place), RADIUS, facecolor=COLOURS[kind], edgecolor="#333333", zorder=3))
    axes.text(*place, names.get(node, str(node)), ha="center", va="center", fontsize=10, zorder=4)


def _label(axes: Any, place: np.ndarray, text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
    axes.text(*place, text, ha="center", va="center", fontsize=8.5, zorder=4, color=colour, bbox=box)
