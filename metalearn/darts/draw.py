"""Pictures of cells: nodes in layers from left to right, every edge with its operation's name."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from metalearn.darts.genotype import INPUTS, Plan
from metalearn.darts.recurrent.genotype import RecurrentGenotype

COLUMN, ROW, MARGIN, RADIUS = 2.9, 1.2, 0.75, 0.3  # inches
BENDS = (0.0, 0.12, -0.12, 0.25, -0.25, 0.4, -0.4)  # of an edge, as parts of its length
PLACES = (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73)  # of a label along its edge
LABEL = np.array([1.08, 0.24])  # inches that a label takes
TITLE = 0.3  # inches above a cell
BLUE, GREEN, ORANGE, PURPLE, GREY = "#1f5fa8", "#2b7d3b", "#b3470f", "#7b3aa3", "#555555"
OPERATION_COLOURS = {  # by the operation's first word
    "max": BLUE,
    "avg": BLUE,
    "skip": GREEN,
    "sep": ORANGE,
    "dil": PURPLE,
    "conv": "#8c6d1f",
    "noise": GREY,
    "identity": GREEN,
    "tanh": ORANGE,
    "relu": PURPLE,
    "sigmoid": BLUE,
}
COLOURS = {"input": "#cfe3f5", "node": "#f4e4b8", "output": "#d3ecd0"}


class Arc(NamedTuple):
    """An edge and the operation on it."""

    source: int
    target: int
    operation: str


class Sketch(NamedTuple):
    """A cell of any space, as it is drawn."""

    nodes: dict[int, str]  # what is written in each: inputs first, the output last
    inputs: int  # how many of them are inputs
    arcs: list[Arc]
    concat: tuple[int, ...]  # the nodes that form the output


class Drawn(NamedTuple):
    """An edge's bend and the centre of its label."""

    bend: float
    label: np.ndarray


def sketch(plan: Plan) -> Sketch:
    """A convolutional cell: k-2 and k-1 are the outputs of the two cells before it."""
    output = INPUTS + len(plan.nodes)
    names = {0: "k-2", 1: "k-1", **{node: str(node) for node in range(INPUTS, output)}, output: "k"}
    arcs = [
        Arc(edge.source, node, edge.operation)
        for node, edges in enumerate(plan.nodes, start=INPUTS)
        for edge in edges
    ]
    return Sketch(names, INPUTS, arcs, plan.concat)


def recurrent_sketch(genotype: RecurrentGenotype) -> Sketch:
    """A recurrent cell: node 0 is made of the input and the last state, the output is the mean of others."""
    output = len(genotype.nodes) + 1
    names = {0: "x, h", **{node: str(node) for node in range(1, output)}, output: "h"}
    arcs = [Arc(edge.source, node, edge.operation) for node, edge in enumerate(genotype.nodes, start=1)]
    return Sketch(names, 1, arcs, genotype.concat)


def write_svg(cells: dict[str, Sketch], path: Path) -> None:
    """Draw cells by title, one below the other, into an .svg file; the same cells give the same bytes."""
    save(figure(cells), path)


def save(canvas: Any, path: Path) -> None:
    """Write a matplotlib figure as .svg, the same bytes each time."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "metalearn", "svg.fonttype": "path"}):
        canvas.savefig(path, format="svg", metadata={"Date": None})


def figure(cells: dict[str, Sketch]) -> Any:
    """The cells as a matplotlib figure, one data unit an inch."""
    from matplotlib.figure import Figure

    placed = [_places(cell) for cell in cells.values()]
    border = np.array([MARGIN, MARGIN + TITLE])
    sizes = [np.max(list(places.values()), axis=0) + border for places in placed]
    width, height = max(size[0] for size in sizes), sum(size[1] for size in sizes)
    canvas = Figure(figsize=(width, height))
    top = height
    for (title, cell), places, size in zip(cells.items(), placed, sizes, strict=True):
        top -= size[1]
        axes = canvas.add_axes((0, top / height, 1, size[1] / height))
        axes.set(xlim=(0, width), ylim=(0, size[1]))
        axes.axis("off")
        axes.text(width / 2, size[1] - TITLE + 0.05, title, ha="center", va="center", fontsize=12)
        shift = np.array([(width - size[0]) / 2, 0.0])
        _draw(axes, cell, {node: place + shift for node, place in places.items()})
    return canvas


def _draw(axes: Any, cell: Sketch, places: dict[int, np.ndarray]) -> None:
    output = max(cell.nodes)
    for node in cell.concat:
        _arrow(axes, places[node], places[output], 0.0, "#b9b9b9")
    _arcs(axes, cell, places)
    for node, place in places.items():
        kind = "input" if node < cell.inputs else "output" if node == output else "node"
        _node(axes, cell.nodes[node], kind, place)


def _places(cell: Sketch) -> dict[int, np.ndarray]:
    """The centre of each node: a column for each step away from the inputs, rows spread over the height."""
    output = max(cell.nodes)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(output))
    graph.add_edges_from((arc.source, arc.target) for arc in cell.arcs)
    layers = [sorted(layer) for layer in nx.topological_generations(graph)] + [[output]]
    height = 2 * MARGIN + ROW * (max(3, *(len(layer) for layer in layers)) - 1)
    places = {}
    for column, layer in enumerate(layers):
        for row, node in enumerate(layer):
            share = (row + 0.5) / len(layer) + 0.06 * (column % 2) * (len(layer) == 1)
            places[node] = np.array([MARGIN + column * COLUMN, height * (1 - share)])
    return places


def _arcs(axes: Any, cell: Sketch, places: dict[int, np.ndarray]) -> None:
    """Long edges first: they have the least room."""
    arcs = sorted(cell.arcs, key=lambda arc: -float(np.linalg.norm(places[arc.target] - places[arc.source])))
    labels: list[np.ndarray] = []
    used: set[tuple[int, int, float]] = set()
    for arc in arcs:
        free = [bend for bend in BENDS if (arc.source, arc.target, bend) not in used]
        drawn = _route(arc, places, labels, free)
        used.add((arc.source, arc.target, drawn.bend))
        labels.append(drawn.label)
        colour = colour_of(arc.operation)
        _arrow(axes, places[arc.source], places[arc.target], drawn.bend, colour)
        _label(axes, drawn.label, arc.operation, colour)


def colour_of(operation: str) -> str:
    """The colour of an operation's kind."""
    return OPERATION_COLOURS.get(operation.partition("_")[0], "#333333")


def _route(arc: Arc, places: dict[int, np.ndarray], labels: list[np.ndarray], bends: list[float]) -> Drawn:
    """The bend and the label's place that come least near to other nodes and labels."""
    start, end = places[arc.source], places[arc.target]
    others = [place for name, place in places.items() if name not in (arc.source, arc.target)]
    best, least = Drawn(bends[0], start), float("inf")
    for bend, at in itertools.product(bends, PLACES):
        line = _curve(start, end, bend, np.linspace(0.1, 0.9, 17))
        label = _curve(start, end, bend, np.array([at]))[0]
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


def _node(axes: Any, name: str, kind: str, place: np.ndarray) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(tuple(place), RADIUS, facecolor=COLOURS[kind], edgecolor="#333333", zorder=3))
    axes.text(*place, name, ha="center", va="center", fontsize=10, zorder=4)


def _label(axes: Any, place: np.ndarray, text: str, colour: str) -> None:
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
    axes.text(*place, text, ha="center", va="center", fontsize=8.5, zorder=4, color=colour, bbox=box)
