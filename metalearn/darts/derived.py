"""The network of one genotype, for training from scratch (appendix A.2)."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.darts import rectified
from metalearn.darts.cell import Cell, cell_shapes, image_shape, reductions, stem
from metalearn.darts.config import CellNetworkOptions
from metalearn.darts.genotype import load, random_genotype
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class DerivedNetwork(Network):
    """A stem and a stack of one genotype's cells; `genotype` is the one it has.

    "random" draws its genotype from torch's global generator, which the builder seeds. Drop path grows with
    `progress`.
    """

    def __init__(self, genotype: str, nodes: int, drop_path: float) -> None:
        super().__init__()
        self.genotype = random_genotype(nodes) if genotype == "random" else load(genotype)
        self.drop_path = drop_path
        self.auxiliary: AuxiliaryHead | None = None

    def _stack(self, cells: int, channels: int, first: int, reduced: bool, classes: int) -> int:
        """Build cells and classifier behind a stem of `first` channels; the channels after `branch`."""
        self.branch = reductions(cells)[1]  # the cell that the auxiliary head reads
        widths = len(self.genotype.normal.concat), len(self.genotype.reduce.concat)
        shapes = cell_shapes(cells, channels, first, widths, reduced)
        self.cells = nn.ModuleList(
            Cell(self.genotype.reduce if shape.reduction else self.genotype.normal, shape) for shape in shapes
        )
        outputs = [shape.channels * widths[shape.reduction] for shape in shapes]
        self.classifier = nn.Linear(outputs[-1], classes)
        return outputs[self.branch]

    @abstractmethod
    def begin(self, x: Float[Tensor, "batch channel height width"]) -> tuple[Tensor, Tensor]:
        """What the stem gives the first cell: its older and its newer input."""

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        state: Tree | None = None,  # noqa: ARG002
    ) -> Output:
        """Logits [batch class]; in training those of the auxiliary head too, if there is one."""
        drop = self.drop_path * self.progress if self.training else 0.0
        if self.fused and rectified.applies(x):
            return self._rectified(x, drop)
        older, newer = self.begin(x)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            older, newer = newer, cell(older, newer, drop)
            if index == self.branch:
                auxiliary = self._auxiliary(newer)
        return Output(self.classifier(newer.mean(dim=(2, 3))), auxiliary=auxiliary)

    def _rectified(self, x: Tensor, drop: float) -> Output:
        """The same, every state through its ReLU once."""
        older, newer = self.begin(x.contiguous(memory_format=torch.channels_last))
        older, newer, last, auxiliary = older.relu(), newer.relu(), newer, None
        for index, cell in enumerate(self.cells):
            last = rectified.forward(cell, older, newer, drop)  # type: ignore[arg-type]
            older, newer = newer, last.relu()
            if index == self.branch:
                auxiliary = self._auxiliary(newer)
        return Output(self.classifier(last.mean(dim=(2, 3))), auxiliary=auxiliary)

    def _auxiliary(self, x: Tensor) -> Tensor | None:
        return self.auxiliary(x) if self.auxiliary is not None and self.training else None


class CellNetwork(DerivedNetwork):
    """The network for small images, CIFAR-10's first of all (A.2.1). Raises UserError for other tasks."""

    def __init__(self, options: CellNetworkOptions, spec: TaskSpec) -> None:
        inputs, height, width = image_shape(options.name, spec)
        super().__init__(options.genotype, options.nodes, options.drop_path)
        first = options.stem_multiplier * options.channels
        self.stem = stem(inputs, first)
        features = self._stack(options.cells, options.channels, first, False, spec.outputs)
        if options.auxiliary:
            check_auxiliary(spec, (height // 4, width // 4), 8)
            self.auxiliary = AuxiliaryHead(features, spec.outputs, stride=3, normalised=True)

    def begin(self, x: Float[Tensor, "batch channel height width"]) -> tuple[Tensor, Tensor]:
        first = self.stem(x)
        return first, first


class AuxiliaryHead(nn.Module):
    """A classifier on maps that a pool of 5x5 pixels makes 2x2 at its stride: 8x8 at 3, 7x7 at 2.

    Its last convolution is `normalised` or not: on ImageNet the authors' runs had left that out.
    """

    def __init__(self, inputs: int, classes: int, stride: int, normalised: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=stride, count_include_pad=False),
            nn.Conv2d(inputs, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([nn.BatchNorm2d(768)] if normalised else []),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Logits [batch class]."""
        return self.classifier(torch.flatten(self.features(x), 1))


def check_auxiliary(spec: TaskSpec, left: tuple[int, int], side: int) -> None:
    """Raises UserError unless the maps after the second reduction are those that the head reads."""
    if left != (side, side):
        scale = spec.input_shape[1] // left[0] * side
        raise UserError(
            f"network.auxiliary: the head reads maps of {side}x{side} pixels after the second reduction, "
            f"images of {spec.name} leave {left[0]}x{left[1]}; set network.auxiliary=false "
            f"({scale}x{scale} images leave {side}x{side})"
        )
