"""What a search finds: which operations a cell has, and between which nodes; as versioned JSON."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metalearn.darts.operations import CANDIDATES, OPERATIONS
from metalearn.registry import UserError, closest

FORMAT, VERSION = "metalearn.genotype.cnn", 1
FORMATS = {  # of each kind of genotype: what it is of, and the network that takes it
    FORMAT: ("a convolutional cell", "darts_cell"),
    "metalearn.genotype.rnn": ("a recurrent cell", "darts_recurrent_cell"),
}
PUBLISHED = Path(__file__).parent / "genotypes"
INPUTS = 2  # a cell's nodes 0 and 1 are the outputs of the two cells before it
KEPT = 2  # incoming edges of a node


class Edge(NamedTuple):
    """One incoming edge of a node."""

    operation: str
    source: int  # the node it comes from


@dataclass(frozen=True)
class Plan:
    """One cell: the two incoming edges of each node from node 2 on, and the nodes that form its output."""

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]

    def count(self, operation: str) -> int:
        """On how many edges the operation stands."""
        return sum(edge.operation == operation for node in self.nodes for edge in node)


class AnyGenotype(ABC):
    """What a search in any space finds."""

    @abstractmethod
    def to_json(self) -> str:
        """The text of a genotype file."""

    @abstractmethod
    def skips(self) -> dict[str, int]:
        """On how many edges a skip connection stands, by kind of cell."""


@dataclass(frozen=True)
class Genotype(AnyGenotype):
    """A normal and a reduction cell. Raises UserError if they are no cells."""

    normal: Plan
    reduce: Plan

    def __post_init__(self) -> None:
        _check_plan(self.normal, "normal")
        _check_plan(self.reduce, "reduce")

    def to_json(self) -> str:
        """The text of a genotype file."""
        cells = f' "normal": {_written(self.normal)},\n "reduce": {_written(self.reduce)}'
        return f'{{\n "format": "{FORMAT}",\n "version": {VERSION},\n{cells}\n}}\n'

    def skips(self) -> dict[str, int]:
        """On how many edges an identity or its strided form stands."""
        return {"normal": self.normal.count("skip_connect"), "reduce": self.reduce.count("skip_connect")}

    @staticmethod
    def from_json(text: str, origin: str = "genotype") -> "Genotype":
        """Read `to_json`'s text. Raises UserError, naming `origin`, for anything else."""
        document = read_document(text, FORMAT, origin)
        try:
            return Genotype(_plan(document, "normal"), _plan(document, "reduce"))
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None


def published(kind: str = FORMAT) -> list[str]:
    """The names of the genotypes of a format that ship with the package."""
    kinds = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["format"] for path in PUBLISHED.glob("*.json")
    }
    return sorted(name for name, format_ in kinds.items() if format_ == kind)


def load(name: str) -> Genotype:
    """The genotype of a published name or of a .json file. Raises UserError."""
    path = find(name, FORMAT)
    return Genotype.from_json(path.read_text(encoding="utf-8"), origin=str(path))


def find(name: str, kind: str) -> Path:
    """The file of a published name or of a .json path. Raises UserError, listing those of format `kind`."""
    path = Path(name).expanduser() if name.endswith(".json") else PUBLISHED / f"{name}.json"
    if not path.is_file():
        known = ", ".join([*closest(name, published(kind)), "random"])
        raise UserError(f"genotype: no {name!r} here; choose one of: {known}; or a path that ends in .json")
    return path


def read_document(text: str, kind: str, origin: str) -> dict[str, Any]:
    """A genotype file's object. Raises UserError, naming `origin`, for what is not of format `kind`."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{origin}: not JSON ({error}); give a file that a darts search wrote") from None
    try:
        _check_header(document, kind)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return document


def discretise(
    normal: Float[Tensor, "edge operation"],
    reduce: Float[Tensor, "edge operation"],
    operations: Sequence[str] = CANDIDATES,
) -> Genotype:
    """The genotype that strengths, for softmax its weights, stand for (section 2.4).

    An edge is as strong as its strongest operation other than none. A node keeps its two strongest edges,
    the stronger first, of equals the one from the earlier node, each with that operation.
    """
    return Genotype(_discretise_cell(normal, operations), _discretise_cell(reduce, operations))


def random_genotype(nodes: int, rng: torch.Generator | None = None) -> Genotype:
    """Two cells drawn uniformly: operations other than none, two distinct predecessors for each node.

    `rng` None draws from torch's global generator.
    """
    return Genotype(_random_plan(nodes, rng), _random_plan(nodes, rng))


def encode(plan: Plan, operations: Sequence[str] = CANDIDATES) -> Bool[Tensor, "edge operation"]:
    """Where a cell's operations stand among `operations` on all edges; `discretise` undoes it.

    Raises UserError for a cell of any other operation.
    """
    rows = []
    for node, edges in enumerate(plan.nodes, start=INPUTS):
        mask = torch.zeros(node, len(operations), dtype=torch.bool)
        for edge in edges:
            if edge.operation not in operations:
                known = ", ".join(operations)
                raise UserError(f"genotype: {edge.operation!r} is not in this space, which has: {known}")
            mask[edge.source, operations.index(edge.operation)] = True
        rows.append(mask)
    return torch.cat(rows)


def _random_plan(nodes: int, rng: torch.Generator | None) -> Plan:
    drawn = []
    for node in range(INPUTS, INPUTS + nodes):
        sources = sorted(torch.randperm(node, generator=rng)[:KEPT].tolist())
        picks = torch.randint(1, len(CANDIDATES), (KEPT,), generator=rng).tolist()
        drawn.append(
            tuple(Edge(CANDIDATES[pick], source) for pick, source in zip(picks, sources, strict=True))
        )
    return Plan(tuple(drawn), tuple(range(INPUTS, INPUTS + nodes)))


def _discretise_cell(strengths: Tensor, operations: Sequence[str]) -> Plan:
    rows: list[list[float]] = strengths.tolist()
    nodes, start, node = [], 0, INPUTS
    while start < len(rows):
        nodes.append(_strongest(rows[start : start + node], operations))
        start, node = start + node, node + 1
    return Plan(tuple(nodes), tuple(range(INPUTS, node)))


def _strongest(rows: Sequence[Sequence[float]], operations: Sequence[str]) -> tuple[Edge, ...]:
    """The two strongest of a node's edges; row i comes from node i."""
    places = [place for place, name in enumerate(operations) if name != "none"]
    best = [max(places, key=row.__getitem__) for row in rows]
    order = sorted(range(len(rows)), key=lambda source: -rows[source][best[source]])
    return tuple(Edge(operations[best[source]], source) for source in order[:KEPT])


def _written(plan: Plan) -> str:
    """One line a node, to be read by people too."""
    nodes = ",\n".join(f"   {json.dumps(node)}" for node in plan.nodes)
    return f'{{\n  "nodes": [\n{nodes}\n  ],\n  "concat": {json.dumps(plan.concat)}\n }}'


def _check_header(document: Any, kind: str) -> None:
    found = document.get("format") if isinstance(document, dict) else None
    if found != kind:
        wanted = f'not a genotype of {FORMATS[kind][0]}; it must be an object with "format": "{kind}"'
        other = FORMATS.get(found) if isinstance(found, str) else None
        raise UserError(f"{wanted}; this is {other[0]}, for network={other[1]}" if other else wanted)
    if document.get("version") != VERSION:
        raise UserError(f"version {document.get('version')!r}, this release reads version {VERSION}")


def _plan(document: dict[str, Any], cell: str) -> Plan:
    """The cell as it stands in the file, its types checked, its meaning not yet."""
    body = document.get(cell)
    if not isinstance(body, dict) or set(body) != {"nodes", "concat"}:
        raise UserError(f'{cell}: got {body!r}, must be an object of "nodes" and "concat"')
    nodes, concat = body["nodes"], body["concat"]
    if not isinstance(concat, list) or not all(_is_index(node) for node in concat):
        raise UserError(f"{cell}.concat: got {concat!r}, must be a list of node numbers")
    if not isinstance(nodes, list) or not all(isinstance(node, list) for node in nodes):
        raise UserError(f"{cell}.nodes: got {nodes!r}, must be a list of lists of [operation, source]")
    for edge in (edge for node in nodes for edge in node):
        if not (
            isinstance(edge, list) and len(edge) == 2 and isinstance(edge[0], str) and _is_index(edge[1])
        ):
            raise UserError(f"{cell}.nodes: got the edge {edge!r}, must be [operation, source]")
    return Plan(tuple(tuple(Edge(*edge) for edge in node) for node in nodes), tuple(concat))


def _is_index(value: Any) -> bool:
    return type(value) is int


def _check_plan(plan: Plan, cell: str) -> None:
    allowed = [name for name in OPERATIONS if name != "none"]
    for node, edges in enumerate(plan.nodes, start=INPUTS):
        if len(edges) != KEPT:
            raise UserError(f"{cell}: node {node} has {len(edges)} incoming edges, must have {KEPT}")
        for edge in edges:
            if edge.operation not in allowed:
                names = ", ".join(closest(edge.operation, allowed))
                raise UserError(
                    f"{cell}: node {node}: no operation {edge.operation!r}; choose one of: {names}"
                )
            if not 0 <= edge.source < node:
                raise UserError(f"{cell}: node {node} comes from {edge.source}, must be from 0 to {node - 1}")
    last = INPUTS + len(plan.nodes) - 1
    inside = all(INPUTS <= node <= last for node in plan.concat)
    if not plan.concat or not inside or len(set(plan.concat)) != len(plan.concat):
        raise UserError(
            f"{cell}: concat {list(plan.concat)}, must be one or more different nodes from {INPUTS} to {last}"
        )
