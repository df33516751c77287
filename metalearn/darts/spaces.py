"""Which operations stand on which edge: the space of DARTS, and narrower ones of later work."""

import itertools
from collections.abc import Mapping

import torch
from jaxtyping import Bool

from metalearn.darts.genotype import INPUTS, KEPT, Edge, Plan
from metalearn.darts.operations import CANDIDATES
from metalearn.darts.space import Choices
from metalearn.registry import UserError

COLUMNS = {  # of spaces that are the same on all edges
    "darts": CANDIDATES,
    # without none (Chu et al. 2020, FairDARTS): nothing competes, so nothing has to take a share away
    "fair": CANDIDATES[1:],
    # Zela et al. 2020 (RobustDARTS), section 3; columns in the order of the authors' src/spaces.py
    "s2": ("skip_connect", "sep_conv_3x3"),
    "s3": ("none", "skip_connect", "sep_conv_3x3"),
    "s4": ("noise", "sep_conv_3x3"),
}
MAX, AVG, SKIP, SEP3, DIL3, DIL5 = S1_COLUMNS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
S1 = {  # S1 of Zela et al. 2020: the two operations of each of 14 edges, from the authors' src/spaces.py
    "normal": [
        (SKIP, DIL3), (SKIP, DIL5),
        (SKIP, DIL5), (SKIP, SEP3), (SKIP, DIL3),
        (MAX, SKIP), (SKIP, SEP3), (SKIP, SEP3), (SKIP, DIL3),
        (SKIP, SEP3), (MAX, SKIP), (SKIP, DIL3), (DIL3, DIL5), (DIL3, DIL5),
    ],
    "reduce": [
        (MAX, AVG), (MAX, DIL3),
        (MAX, AVG), (MAX, AVG), (SKIP, DIL5),
        (MAX, AVG), (MAX, SEP3), (SKIP, DIL3), (SKIP, DIL5),
        (MAX, AVG), (MAX, AVG), (SKIP, DIL5), (SKIP, DIL5), (SKIP, DIL5),
    ],
}  # fmt: skip


def choices(
    space: str, nodes: int, allowed: Mapping[str, Bool[torch.Tensor, "edge operation"]] | None = None
) -> dict[str, Choices]:
    """What the kinds of cell choose from; `allowed` narrows it. Raises UserError for S1 of other nodes."""
    targets = tuple(node for node in range(INPUTS, INPUTS + nodes) for _ in range(node))
    sources = tuple(source for node in range(INPUTS, INPUTS + nodes) for source in range(node))
    columns = S1_COLUMNS if space == "s1" else COLUMNS[space]
    found = {}
    for kind in ("normal", "reduce"):
        mask = _s1(kind, len(targets)) if space == "s1" else torch.ones(len(targets), len(columns)).bool()
        found[kind] = Choices(columns, targets, sources, mask if allowed is None else mask & allowed[kind])
    return found


def _s1(kind: str, edges: int) -> Bool[torch.Tensor, "edge operation"]:
    if edges != len(S1[kind]):
        raise UserError("network darts_supernet: space s1 is one of cells of 4 nodes; set network.nodes=4")
    return torch.tensor([[name in pair for name in S1_COLUMNS] for pair in S1[kind]])


def sample(choice: Choices, rng: torch.Generator) -> Plan:
    """A cell drawn uniformly from those of two distinct predecessors and allowed operations other than none.

    Raises UserError where a node has no two such predecessors.
    """
    nodes = []
    for node in range(INPUTS, max(choice.targets) + 1):
        names = [_named(choice, edge) for edge, target in enumerate(choice.targets) if target == node]
        pairs = list(itertools.combinations([edge for edge in names if edge], KEPT))
        if not pairs:
            raise UserError(f"space: node {node} has fewer than {KEPT} edges with an operation; allow more")
        sizes = torch.tensor([len(first) * len(second) for first, second in pairs], dtype=torch.float64)
        pair = pairs[int(torch.multinomial(sizes, 1, generator=rng))]
        nodes.append(tuple(edge[int(torch.randint(len(edge), (), generator=rng))] for edge in pair))
    return Plan(tuple(nodes), tuple(range(INPUTS, INPUTS + len(nodes))))


def built(choice: Choices, edge: int) -> list[str | None]:
    """An edge's operations in the order of alpha's columns, None for those that are not allowed."""
    row = choice.allowed[edge].tolist()
    return [name if used else None for name, used in zip(choice.operations, row, strict=True)]


def _named(choice: Choices, edge: int) -> list[Edge]:
    """What an edge can be in a genotype."""
    names = [name for name in built(choice, edge) if name and name != "none"]
    return [Edge(name, choice.sources[edge]) for name in names]
