"""The edges that leave one state of a mixed cell, with their parameters side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalearn.darts.edge import MixedEdge
from metalearn.darts.genotype import INPUTS
from metalearn.darts.operations import FactorizedReduce


class Separable(NamedTuple):
    """One kind of convolution: ReLU, depthwise, pointwise, normalisation, once or twice."""

    name: str
    kernel: int
    dilation: int
    layers: int


SEPARABLES = (
    Separable("sep_conv_3x3", 3, 1, 2),
    Separable("sep_conv_5x5", 5, 1, 2),
    Separable("dil_conv_3x3", 3, 2, 1),
    Separable("dil_conv_5x5", 5, 2, 1),
)


class Layer(NamedTuple):
    """One convolution of all edges, and the normalisations after it."""

    depthwise: Tensor  # [edge*channel 1 kernel kernel]
    pointwise: Tensor  # [edge*channel channel 1 1]
    norms: list[nn.BatchNorm2d]  # of each edge


class Leaving:
    """The mixed edges from one state to all nodes after it; they share their input and stride."""

    def __init__(self, edges: Sequence[MixedEdge], stride: int) -> None:
        self.operations = [edge.operations for edge in edges]
        self.places = edges[0].places  # columns of the weights, by the operation's name
        self.stride = stride

    def __len__(self) -> int:
        return len(self.operations)

    def norms(self, name: str, place: int) -> list[nn.BatchNorm2d]:
        """The normalisation at `place` of operation `name` on each edge."""
        return [operations[name][place] for operations in self.operations]  # type: ignore[index]

    def layer(self, kind: Separable, number: int) -> Layer:
        """Layer `number` of a convolution: modules 1 and 2 of each four convolve, 3 normalises."""
        modules = [operations[kind.name] for operations in self.operations]
        first = 4 * number
        return Layer(
            torch.cat([module[first + 1].weight for module in modules]),  # type: ignore[index]
            torch.cat([module[first + 2].weight for module in modules]),  # type: ignore[index]
            [module[first + 3] for module in modules],  # type: ignore[index]
        )

    def reductions(self) -> list[FactorizedReduce]:
        """The skip connections of edges with stride 2."""
        return [operations["skip_connect"] for operations in self.operations]  # type: ignore[misc]


def outgoing(source: int, nodes: int) -> list[int]:
    """Where the edges that leave state `source` stand among a cell's edges, by the node they lead to."""
    targets = range(INPUTS, INPUTS + nodes)
    first = {target: sum(range(INPUTS, target)) for target in targets}
    return [first[target] + source for target in targets if target > source]
