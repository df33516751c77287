"""What all networks of cells share: how cells follow each other, stem, head, and the cell of one genotype."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.darts.genotype import INPUTS, Plan
from metalearn.darts.operations import FactorizedReduce, operation, relu_conv_norm
from metalearn.registry import UserError
from metalearn.task import TaskSpec


class CellShape(NamedTuple):
    """Where a cell stands in the network."""

    channels: int  # of each node
    older: int  # channels of the output two cells before
    newer: int  # channels of the output one cell before
    reduction: bool  # halves height and width
    reduction_before: bool  # the cell before it does, so the older input is twice as high and wide


def cell_shapes(
    cells: int, channels: int, stem: int, widths: tuple[int, int], reduced: bool = False
) -> list[CellShape]:
    """A network's cells in order; those at a third and two thirds reduce, doubling the channels.

    `stem` is the channels of the stem's outputs, the older of which is twice as high and wide if the stem
    ends `reduced`; `widths` how many nodes a normal and a reduction cell concatenate.
    """
    shapes, older, newer, before = [], stem, stem, reduced
    for index in range(cells):
        reduction = index in reductions(cells)
        channels *= 1 + reduction
        shapes.append(CellShape(channels, older, newer, reduction, before))
        older, newer, before = newer, channels * widths[reduction], reduction
    return shapes


def reductions(cells: int) -> tuple[int, int]:
    """The indices of the reduction cells."""
    return cells // 3, 2 * cells // 3


def image_shape(network: str, spec: TaskSpec, shrinks: int = 4) -> tuple[int, int, int]:
    """Channels, height, width of a task of images, which a network divides by `shrinks` (4: two reductions).

    Raises UserError for any other task.
    """
    if spec.kind != "classification" or len(spec.input_shape) != 3:
        raise UserError(
            f"network {network}: task {spec.name} is a {spec.kind} of inputs {spec.input_shape}; "
            "choose a classification task of images (channels, height, width)"
        )
    channels, height, width = spec.input_shape
    if height % shrinks or width % shrinks:
        raise UserError(
            f"network {network}: images of {spec.name} are {height}x{width}; its reductions need a height "
            f"and a width that {shrinks} divides"
        )
    return channels, height, width


def stem(inputs: int, outputs: int) -> nn.Module:
    """3x3 convolution and normalisation; its output is both inputs of the first cell."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


class CellInputs(nn.Module):
    """Brings the outputs of the two cells before to one size and one number of channels."""

    def __init__(self, shape: CellShape, affine: bool) -> None:
        super().__init__()
        older = FactorizedReduce if shape.reduction_before else relu_conv_norm
        self.older = older(shape.older, shape.channels, affine)
        self.newer = relu_conv_norm(shape.newer, shape.channels, affine)

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        """Nodes 0 and 1."""
        return [self.older(older), self.newer(newer)]


def stride_from(source: int, reduction: bool) -> int:
    """In a reduction cell the edges that leave the two input nodes have stride 2."""
    return 2 if reduction and source < INPUTS else 1


def drop_path(x: Float[Tensor, "batch channel height width"], probability: float) -> Tensor:
    """Zero whole examples with `probability`, and scale the others to keep the mean."""
    keep = 1.0 - probability
    mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x / keep * mask


class Cell(nn.Module):
    """A cell of the derived network."""

    def __init__(self, plan: Plan, shape: CellShape) -> None:
        super().__init__()
        self.plan = plan
        self.inputs = CellInputs(shape, affine=True)
        self.edges = nn.ModuleList(
            operation(edge.operation, shape.channels, stride_from(edge.source, shape.reduction))
            for node in plan.nodes
            for edge in node
        )

    def forward(self, older: Tensor, newer: Tensor, drop: float) -> Tensor:
        """The concatenated nodes; `drop` is the probability that an edge other than identity is cut."""
        nodes, edges = self.inputs(older, newer), iter(self.edges)
        for node in self.plan.nodes:
            first, second = (_pass(next(edges), nodes[edge.source], drop) for edge in node)
            nodes.append(first + second)
        return torch.cat([nodes[index] for index in self.plan.concat], dim=1)


def _pass(edge: nn.Module, x: Tensor, drop: float) -> Tensor:
    if drop == 0 or isinstance(edge, nn.Identity):
        return edge(x)
    return drop_path(edge(x), drop)
