"""The continuous relaxation of the cell space: edges hold every operation, mixed by weights."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalearn.darts.cell import CellInputs, CellShape, cell_shapes, image_shape, stem, stride_from
from metalearn.darts.config import SupernetOptions
from metalearn.darts.edge import MixedEdge, PartialEdge
from metalearn.darts.fused.cell import fusable, fused_cell
from metalearn.darts.genotype import INPUTS, Genotype, discretise, encode
from metalearn.darts.space import Choices, Mixture, SearchSpace
from metalearn.darts.spaces import built, choices, sample
from metalearn.network import Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class MixedCell(nn.Module):
    """A cell whose nodes take a mixed edge from each node before them.

    `forward` is the seam for a faster form that computes the edges of a cell together. One channel in
    `partial` passes the operations.
    """

    def __init__(self, shape: CellShape, nodes: int, choice: Choices, partial: int) -> None:
        super().__init__()
        self.reduction, self.nodes = shape.reduction, nodes
        self.inputs = CellInputs(shape, affine=False)
        self.edges = nn.ModuleList(
            _edge(shape, source, built(choice, edge), partial) for edge, source in enumerate(choice.sources)
        )

    def forward(
        self,
        older: Tensor,
        newer: Tensor,
        weights: Float[Tensor, "edge operation"],
        running: list[list[bool]] | None,
        drop: float,
        skip_dropout: float,
    ) -> Tensor:
        """The concatenated intermediate nodes; a node that nothing leads to is zeros."""
        nodes, index = self.inputs(older, newer), 0
        for _ in range(self.nodes):
            incoming = []
            for node in nodes:
                edge, active = self.edges[index], running[index] if running is not None else None
                if edge.runs(active):  # type: ignore[operator]
                    incoming.append(edge(node, weights[index], active, drop, skip_dropout))
                index += 1
            nodes.append(torch.stack(incoming).sum(dim=0) if incoming else self._nothing(nodes[0]))
        return torch.cat(nodes[INPUTS:], dim=1)

    def _nothing(self, node: Tensor) -> Tensor:
        """Zeros of an intermediate node's shape."""
        stride = stride_from(0, self.reduction)
        return torch.zeros_like(node[:, :, ::stride, ::stride])


def _edge(shape: CellShape, source: int, names: Sequence[str | None], partial: int) -> nn.Module:
    stride = stride_from(source, shape.reduction)
    if partial == 1:
        return MixedEdge(shape.channels, stride, names)
    return PartialEdge(shape.channels, stride, names, partial)


class Supernet(SearchSpace):
    """The search network for images of `spec`. Raises UserError for a task of anything else.

    `allowed` says which of the space's operations are built on which edge; None: all.
    """

    def __init__(
        self,
        options: SupernetOptions,
        spec: TaskSpec,
        allowed: dict[str, Bool[Tensor, "edge operation"]] | None = None,
    ) -> None:
        inputs, _, _ = image_shape(options.name, spec)
        _check_parts(options)
        super().__init__()
        self.options, self.spec = options, spec
        self.choices = choices(options.space, options.nodes, allowed)
        first = options.stem_multiplier * options.channels
        shapes = cell_shapes(options.cells, options.channels, first, (options.nodes, options.nodes))
        self.stem = stem(inputs, first)
        self.cells = nn.ModuleList(
            MixedCell(shape, options.nodes, self.choices[_kind(shape.reduction)], options.partial)
            for shape in shapes
        )
        self.classifier = nn.Linear(shapes[-1].channels * options.nodes, spec.outputs)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        state: Tree | None = None,  # noqa: ARG002
        mixture: Mixture | None = None,
    ) -> Output:
        """Logits [batch class] under the weights "normal" and "reduce", each [edge operation]."""
        mixture = mixture or self._even(x)
        running = mixture.running or dict.fromkeys(mixture.weights)
        drop, skip_dropout = (self.drop_path, self.skip_dropout) if self.training else (0.0, 0.0)
        older = newer = self.stem(x.contiguous(memory_format=torch.channels_last))
        for cell in self.cells:
            kind = _kind(cell.reduction)  # type: ignore[arg-type]
            weights, active = mixture.weights[kind], running[kind]
            plainly = drop or skip_dropout or not self.fused
            if not plainly and fusable(cell, newer, active):  # type: ignore[arg-type]
                mixed = fused_cell(cell, older, newer, weights)  # type: ignore[arg-type]
            else:
                mixed = cell(older, newer, weights, active, drop, skip_dropout)
            older, newer = newer, mixed
        return Output(self.classifier(newer.mean(dim=(2, 3))))

    def _even(self, like: Tensor) -> Mixture:
        """All operations of an edge alike."""
        masks = {kind: choice.allowed.to(like) for kind, choice in self.choices.items()}
        return Mixture({kind: mask / mask.sum(1, keepdim=True).clamp_min(1) for kind, mask in masks.items()})

    def discretise(self, strengths: Tree) -> Genotype:
        """The two strongest edges of each node."""
        return discretise(strengths["normal"], strengths["reduce"], self.choices["normal"].operations)

    def encode(self, genotype: Genotype) -> dict[str, Bool[Tensor, "edge operation"]]:  # type: ignore[override]
        """Where its operations stand. Raises UserError for a genotype of another space."""
        plans = {"normal": genotype.normal, "reduce": genotype.reduce}
        return {kind: encode(plan, self.choices[kind].operations) for kind, plan in plans.items()}

    def sample(self, rng: torch.Generator) -> Genotype:
        """Two distinct predecessors for each node, allowed operations other than none."""
        return Genotype(sample(self.choices["normal"], rng), sample(self.choices["reduce"], rng))

    def restricted(self, cells: int, allowed: dict[str, Bool[Tensor, "edge operation"]]) -> "Supernet":
        """The same with so many cells and the allowed operations."""
        return Supernet(dataclasses.replace(self.options, cells=cells), self.spec, allowed)


def _kind(reduction: bool) -> str:
    return "reduce" if reduction else "normal"


def _check_parts(options: SupernetOptions) -> None:
    if options.channels % (2 * options.partial):
        raise UserError(
            f"network {options.name}: {options.channels} channels have no even part of one in "
            f"{options.partial}; set network.channels to a multiple of {2 * options.partial}"
        )
