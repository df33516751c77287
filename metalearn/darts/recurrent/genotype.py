"""What a search for recurrent cells finds: each node's activation and predecessor; as versioned JSON."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metalearn.darts.genotype import VERSION, AnyGenotype, Edge, find, read_document
from metalearn.registry import UserError, closest

FORMAT = "metalearn.genotype.rnn"
ACTIVATIONS = ("none", "tanh", "relu", "sigmoid", "identity")  # the order of alpha's columns


@dataclass(frozen=True)
class RecurrentGenotype(AnyGenotype):
    """The incoming edge of each node from node 1 on, and the nodes whose mean is the cell's output.

    Node 0 is the initial state, made of the input and the last hidden state. Raises UserError if it is no
    cell.
    """

    nodes: tuple[Edge, ...]
    concat: tuple[int, ...]

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> str:
        """The text of a genotype file, one line a node."""
        nodes = ",\n".join(f"  {json.dumps(node)}" for node in self.nodes)
        body = f' "nodes": [\n{nodes}\n ],\n "concat": {json.dumps(self.concat)}'
        return f'{{\n "format": "{FORMAT}",\n "version": {VERSION},\n{body}\n}}\n'

    def skips(self) -> dict[str, int]:
        """How many nodes have the identity."""
        return {"cell": sum(edge.operation == "identity" for edge in self.nodes)}

    @staticmethod
    def from_json(text: str, origin: str = "genotype") -> "RecurrentGenotype":
        """Read `to_json`'s text. Raises UserError, naming `origin`, for anything else."""
        document = read_document(text, FORMAT, origin)
        try:
            return _typed(document)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None


def load(name: str) -> RecurrentGenotype:
    """The genotype of a published name or of a .json file. Raises UserError."""
    path = find(name, FORMAT)
    return RecurrentGenotype.from_json(path.read_text(encoding="utf-8"), origin=str(path))


def discretise(strengths: Float[Tensor, "edge operation"]) -> RecurrentGenotype:
    """The genotype that strengths, for softmax its weights, stand for (section 2.4, k = 1).

    An edge is as strong as its strongest activation other than none. A node keeps its strongest edge, of
    equals the one from the earlier node, with that activation, of equals the first.
    """
    rows: list[list[float]] = strengths.tolist()
    nodes, start = [], 0
    while start < len(rows):
        incoming = rows[start : start + len(nodes) + 1]
        source = max(range(len(incoming)), key=lambda row: max(incoming[row][1:]))
        best = max(range(1, len(ACTIVATIONS)), key=incoming[source].__getitem__)
        nodes.append(Edge(ACTIVATIONS[best], source))
        start += len(incoming)
    return RecurrentGenotype(tuple(nodes), tuple(range(1, len(nodes) + 1)))


def encode(genotype: RecurrentGenotype) -> Bool[Tensor, "edge operation"]:
    """Where the activations stand on all edges; `discretise` undoes it."""
    rows = []
    for node, edge in enumerate(genotype.nodes, start=1):
        mask = torch.zeros(node, len(ACTIVATIONS), dtype=torch.bool)
        mask[edge.source, ACTIVATIONS.index(edge.operation)] = True
        rows.append(mask)
    return torch.cat(rows)


def random_genotype(nodes: int, rng: torch.Generator | None = None) -> RecurrentGenotype:
    """A cell drawn uniformly: an activation other than none and a predecessor for each node.

    `rng` None draws from torch's global generator.
    """
    drawn = []
    for node in range(1, nodes + 1):
        activation = int(torch.randint(1, len(ACTIVATIONS), (), generator=rng))
        drawn.append(Edge(ACTIVATIONS[activation], int(torch.randint(node, (), generator=rng))))
    return RecurrentGenotype(tuple(drawn), tuple(range(1, nodes + 1)))


def _typed(document: dict[str, Any]) -> RecurrentGenotype:
    nodes, concat = document.get("nodes"), document.get("concat")
    if not isinstance(concat, list) or not all(type(node) is int for node in concat):
        raise UserError(f"concat: got {concat!r}, must be a list of node numbers")
    if not isinstance(nodes, list):
        raise UserError(f"nodes: got {nodes!r}, must be a list of [activation, source]")
    for edge in nodes:
        if not (isinstance(edge, list) and [type(part) for part in edge] == [str, int]):
            raise UserError(f"nodes: got {edge!r}, must be [activation, source]")
    return RecurrentGenotype(tuple(Edge(*edge) for edge in nodes), tuple(concat))


def _check(genotype: RecurrentGenotype) -> None:
    allowed: list[str] = list(ACTIVATIONS[1:])
    for node, (activation, source) in enumerate(genotype.nodes, start=1):
        if activation not in allowed:
            names = ", ".join(closest(activation, allowed))
            raise UserError(f"node {node}: no activation {activation!r}; choose one of: {names}")
        if not 0 <= source < node:
            raise UserError(f"node {node} comes from {source}, must be from 0 to {node - 1}")
    last, concat = len(genotype.nodes), genotype.concat
    if not concat or not all(1 <= node <= last for node in concat) or len(set(concat)) != len(concat):
        raise UserError(f"concat {list(concat)}, must be one or more different nodes from 1 to {last}")
