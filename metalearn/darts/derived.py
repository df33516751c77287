"""The network of one genotype, for training from scratch (appendix A.2.1)."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.darts.cell import Cell, cell_shapes, image_shape, reductions, stem
from metalearn.darts.config import CellNetworkOptions
from metalearn.darts.genotype import load, random_genotype
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class CellNetwork(Network):
    """A stack of one genotype's cells; `genotype` is the one it has.

    "random" draws its genotype from torch's global generator, which the builder seeds. Drop path grows with
    `progress`. Raises UserError for a task of anything but images.
    """

    def __init__(self, options: CellNetworkOptions, spec: TaskSpec) -> None:
        inputs, height, width = image_shape(options.name, spec)
        super().__init__()
        random = options.genotype == "random"
        self.genotype = random_genotype(options.nodes) if random else load(options.genotype)
        self.drop_path = options.drop_path
        widths = len(self.genotype.normal.concat), len(self.genotype.reduce.concat)
        first = options.stem_multiplier * options.channels
        shapes = cell_shapes(options.cells, options.channels, first, widths)
        self.stem = stem(inputs, first)
        self.cells = nn.ModuleList(
            Cell(self.genotype.reduce if shape.reduction else self.genotype.normal, shape) for shape in shapes
        )
        outputs = [shape.channels * widths[shape.reduction] for shape in shapes]
        self.classifier = nn.Linear(outputs[-1], spec.outputs)
        self.branch = reductions(options.cells)[1]
        self.auxiliary = None
        if options.auxiliary:
            _check_auxiliary(spec, height // 4, width // 4)
            self.auxiliary = AuxiliaryHead(outputs[self.branch], spec.outputs)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        state: Tree | None = None,  # noqa: ARG002
    ) -> Output:
        """Logits [batch class]; in training those of the auxiliary head too, if there is one."""
        drop = self.drop_path * self.progress if self.training else 0.0
        older = newer = self.stem(x)
        auxiliary = None
        for index, cell in zip(itertools.count(), self.cells, strict=False):
            older, newer = newer, cell(older, newer, drop)
            if index == self.branch and self.auxiliary is not None and self.training:
                auxiliary = self.auxiliary(newer)
        return Output(self.classifier(newer.mean(dim=(2, 3))), auxiliary=auxiliary)


class AuxiliaryHead(nn.Module):
    """A classifier on maps of 8x8 pixels."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, count_include_pad=False),  # 8x8 to 2x2
            nn.Conv2d(inputs, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Float[Tensor, "batch channel 8 8"]) -> Tensor:
        """Logits [batch class]."""
        return self.classifier(torch.flatten(self.features(x), 1))


def _check_auxiliary(spec: TaskSpec, height: int, width: int) -> None:
    if (height, width) != (8, 8):
        raise UserError(
            f"network.auxiliary: the head reads maps of 8x8 pixels after the second reduction, images of "
            f"{spec.name} leave {height}x{width}; set network.auxiliary=false (32x32 images leave 8x8)"
        )
