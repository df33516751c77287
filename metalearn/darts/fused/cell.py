"""A mixed cell in fused form: the same function of the same parameters as the plain one."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.darts.cell import stride_from
from metalearn.darts.edge import MixedEdge
from metalearn.darts.fused import compiled, eager
from metalearn.darts.fused.edges import Leaving, outgoing
from metalearn.darts.fused.kernels import kernels
from metalearn.darts.genotype import INPUTS
from metalearn.darts.operations import CANDIDATES

if TYPE_CHECKING:
    from metalearn.darts.supernet import MixedCell


def fusable(cell: "MixedCell", x: Tensor, running: list[list[bool]] | None) -> bool:
    """Whether the fused form knows all that the cell does.

    It knows cells that train on all operations of DARTS on each edge, in full precision.
    """
    names = set(CANDIDATES) - {"none"}
    return (
        running is None
        and cell.training
        and not torch.is_autocast_enabled(x.device.type)
        and all(isinstance(edge, MixedEdge) and set(edge.places) == names for edge in cell.edges)
    )


def fused_cell(
    cell: "MixedCell", older: Tensor, newer: Tensor, weights: Float[Tensor, "edge operation"]
) -> Tensor:
    """The concatenated intermediate nodes, as `MixedCell.forward` has them; differentiable once."""
    states = cell.inputs(older, newer)
    totals: list[Tensor | None] = [None] * cell.nodes
    for source in range(INPUTS + cell.nodes - 1):
        if source >= INPUTS:
            states.append(_known(totals[source - INPUTS]))
        places = outgoing(source, cell.nodes)
        edges: list[MixedEdge] = [cell.edges[place] for place in places]  # type: ignore[misc]
        leaving = Leaving(edges, stride_from(source, cell.reduction))
        added = _leave(states[source], leaving, weights[places])
        first = cell.nodes - len(added)
        for node, contribution in enumerate(added, start=first):
            total = totals[node]
            totals[node] = contribution if total is None else total + contribution
    return torch.cat([_known(total) for total in totals], dim=1)


def _leave(x: Tensor, edges: Leaving, weights: Tensor) -> list[Tensor]:
    found = kernels(x)
    return compiled.leave(found, x, edges, weights) if found else eager.leave(x, edges, weights)


def _known(total: Tensor | None) -> Tensor:
    assert total is not None
    return total
