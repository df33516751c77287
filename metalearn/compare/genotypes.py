"""Found cells held against each other: edge by edge, in words, and their pictures."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.compare.estimates import counted
from metalearn.compare.model import Entry, Group, Picture

CELLS = {"metalearn.genotype.cnn": ("normal", "reduce"), "metalearn.genotype.rnn": ("recurrent",)}
FIRST = {"normal": 2, "reduce": 2, "recurrent": 1}  # the number of the first node with incoming edges
PICTURES = ("genotype.svg", "cell_normal.svg", "cell_reduce.svg", "cell.svg")
SHOWN = 12  # configurations

Edge = tuple[int, int, int]  # node, source, and which of its edges from there
Cell = dict[Edge, str]  # operations


class Found(NamedTuple):
    """The genotypes of one configuration."""

    label: str
    cells: Mapping[str, Sequence[Cell]]  # by kind, one a run

    def majority(self, kind: str) -> Cell:
        """Each node's most frequent inputs, as many as in a run, each with its commonest operation."""
        return _majority(self.cells[kind])


def of(groups: Sequence[Group]) -> tuple[list[str], list[Picture]]:
    """Words on each configuration's cells and on those of the others against the first; pictures of cells."""
    found, words = _distinct([one for group in groups if (one := _found(group)).cells])
    left, found = len(found) - SHOWN, found[:SHOWN]
    words += [sentence for one in found for sentence in _counts(one)]
    for other in found[1:]:
        words += [_against(found[0], other, kind) for kind in found[0].cells if kind in other.cells]
    if left > 0:
        words.append(f"The cells of {left} further configurations are left out.")
    names = {one.label for one in found}
    pictures = [one for group in groups if group.label in names for one in _pictures(group)]
    return words, pictures


def read(path: Path) -> dict[str, Cell]:
    """A genotype file's cells by kind; {} for what is none."""
    try:
        document: Any = json.loads(path.read_text("utf-8"))
        kinds = CELLS[document["format"]]
        return {kind: _cell(document.get(kind, document), FIRST[kind]) for kind in kinds}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _cell(document: Mapping[str, Any], first: int) -> Cell:
    """A node has a list of edges, or is its only edge."""
    cell: Cell = {}
    for number, node in enumerate(document["nodes"], start=first):
        for operation, source in node if isinstance(node[0], list) else [node]:
            again = sum(edge[:2] == (number, source) for edge in cell)
            cell[number, int(source), again] = str(operation)
    return cell


def _found(group: Group) -> Found:
    cells: dict[str, list[Cell]] = {}
    for entry in counted(group.entries):
        for kind, cell in read(entry.artifacts / "genotype.json").items() if entry.artifacts else ():
            cells.setdefault(kind, []).append(cell)
    return Found(group.label, cells)


def _distinct(every: Sequence[Found]) -> tuple[list[Found], list[str]]:
    """Those with cells of their own, and words on the others: a network has those of its search."""
    kept: list[Found] = []
    words = []
    for one in every:
        same = next((other for other in kept if other.cells == one.cells), None)
        if same is None:
            kept.append(one)
        else:
            words.append(f"{one.label} has the cells of {same.label}, seed by seed")
    return kept, words


def _majority(cells: Sequence[Cell]) -> Cell:
    sources = Counter(edge for cell in cells for edge in cell)
    kept: Cell = {}
    for node in sorted({edge[0] for edge in sources}):
        width = max(sum(edge[0] == node for edge in cell) for cell in cells)
        edges = sorted((edge for edge in sources if edge[0] == node), key=lambda edge: (-sources[edge], edge))
        for edge in sorted(edges[:width]):
            kept[edge] = Counter(cell[edge] for cell in cells if edge in cell).most_common(1)[0][0]
    return kept


def _counts(found: Found) -> list[str]:
    """How often each operation is in the cells of a configuration."""
    sentences = []
    for kind, cells in found.cells.items():
        counts = Counter(operation for cell in cells for operation in cell.values())
        told = ", ".join(f"{name} {count / len(cells):.3g}" for name, count in counts.most_common())
        runs = f"{len(cells)} run{'s' * (len(cells) > 1)}"
        sentences.append(f"{found.label}, {kind} cell, edges by operation (mean of {runs}): {told}")
    return sentences


def _against(first: Found, other: Found, kind: str) -> str:
    """Edge by edge: the same, another operation, another input."""
    ours, theirs = first.majority(kind), other.majority(kind)
    shared = [edge for edge in ours if edge in theirs]
    changed = [edge for edge in shared if ours[edge] != theirs[edge]]
    told = [f"{_edge(edge)} {ours[edge]} / {theirs[edge]}" for edge in changed]
    moved = _moved(ours, theirs)
    several = any(len(one.cells[kind]) > 1 for one in (first, other))
    return (
        f"{first.label} / {other.label}, {kind} cell{' (the majority over seeds)' if several else ''}: "
        f"of {len(ours)} edges {len(shared) - len(changed)} the same, "
        f"{len(changed)} with another operation{_listed(told)}, "
        f"{len(ours) - len(shared)} from another input{_listed(moved)}"
    )


def _listed(told: Sequence[str]) -> str:
    return f" ({'; '.join(told)})" if told else ""


def _moved(ours: Cell, theirs: Cell) -> list[str]:
    """Nodes whose inputs differ, with the edges that only one of both has."""
    told = []
    for node in sorted({edge[0] for edge in [*ours, *theirs]}):
        left, right = (_only(ours, theirs, node), _only(theirs, ours, node))
        if left or right:
            told.append(f"node {node}: {', '.join(left) or 'none'} / {', '.join(right) or 'none'}")
    return told


def _only(ours: Cell, theirs: Cell, node: int) -> list[str]:
    edges = [edge for edge in ours if edge[0] == node and edge not in theirs]
    return [f"{ours[edge]} from {edge[1]}" for edge in edges]


def _edge(edge: Edge) -> str:
    return f"{edge[1]} to {edge[0]}"


def _pictures(group: Group) -> list[Picture]:
    """Those of the first run that has one."""
    for entry in counted(group.entries):
        drawn = _drawn(entry)
        if drawn:
            who = f"Seed {entry.seed}" if entry.seed is not None else entry.place
            return [Picture(f"{group.label}: {name}", f"{who}.", svg) for name, svg in drawn]
    return []


def _drawn(entry: Entry) -> list[tuple[str, str]]:
    folder = entry.artifacts
    paths = [folder / name for name in PICTURES if (folder / name).is_file()] if folder else []
    if paths and paths[0].name == PICTURES[0]:
        paths = paths[:1]  # it shows all cells
    return [(path.stem.replace("_", " "), path.read_text("utf-8")) for path in paths]
