"""The continuous relaxation of the cell space: edges hold every operation, mixed by alpha."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.darts.cell import CellInputs, CellShape, cell_shapes, image_shape, stem, stride_from
from metalearn.darts.config import SupernetOptions
from metalearn.darts.genotype import INPUTS, Genotype, discretise
from metalearn.darts.operations import CANDIDATES, candidate
from metalearn.darts.space import SearchSpace
from metalearn.network import Output
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class MixedEdge(nn.Module):
    """All candidates on one edge; `none` holds its share of the weights and adds nothing."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(
            {name: candidate(name, channels, stride) for name in CANDIDATES if name != "none"}
        )

    def forward(
        self, x: Float[Tensor, "batch channel height width"], weights: Float[Tensor, " operation"]
    ) -> Tensor:
        """The sum of the operations' outputs by `weights`, in the order of CANDIDATES."""
        shares = weights.unbind()[1:]
        return sum(
            (share * operation(x) for share, operation in zip(shares, self.operations.values(), strict=True)),
            start=x.new_zeros(()),
        )


class MixedCell(nn.Module):
    """A cell whose nodes take a mixed edge from each node before them.

    `forward` is the seam for a faster form that computes the edges of a cell together.
    """

    def __init__(self, shape: CellShape, nodes: int) -> None:
        super().__init__()
        self.reduction, self.nodes = shape.reduction, nodes
        self.inputs = CellInputs(shape, affine=False)
        self.edges = nn.ModuleList(
            MixedEdge(shape.channels, stride_from(source, shape.reduction))
            for node in range(INPUTS, INPUTS + nodes)
            for source in range(node)
        )

    def forward(self, older: Tensor, newer: Tensor, weights: Float[Tensor, "edge operation"]) -> Tensor:
        """The concatenated intermediate nodes."""
        nodes, edges = self.inputs(older, newer), iter(zip(self.edges, weights, strict=True))
        for _ in range(self.nodes):
            incoming = [edge(node, row) for node, (edge, row) in zip(nodes, edges, strict=False)]
            nodes.append(torch.stack(incoming).sum(dim=0))
        return torch.cat(nodes[INPUTS:], dim=1)


class Supernet(SearchSpace):
    """The search network for images of `spec`. Raises UserError for a task of anything else."""

    def __init__(self, options: SupernetOptions, spec: TaskSpec) -> None:
        inputs, _, _ = image_shape(options.name, spec)
        super().__init__()
        first = options.stem_multiplier * options.channels
        shapes = cell_shapes(options.cells, options.channels, first, (options.nodes, options.nodes))
        self.stem = stem(inputs, first)
        self.cells = nn.ModuleList(MixedCell(shape, options.nodes) for shape in shapes)
        self.classifier = nn.Linear(shapes[-1].channels * options.nodes, spec.outputs)
        edges = sum(range(INPUTS, INPUTS + options.nodes))
        self.alpha_shapes = {kind: (edges, len(CANDIDATES)) for kind in ("normal", "reduce")}

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        state: Tree | None = None,  # noqa: ARG002
        alpha: Tree | None = None,
    ) -> Output:
        """Logits [batch class] under alpha["normal"] and alpha["reduce"], each [edge operation]."""
        alpha = alpha or {kind: x.new_zeros(shape) for kind, shape in self.alpha_shapes.items()}
        normal, reduce = alpha["normal"].softmax(dim=-1), alpha["reduce"].softmax(dim=-1)
        older = newer = self.stem(x.contiguous(memory_format=torch.channels_last))
        for cell in self.cells:
            older, newer = newer, cell(older, newer, reduce if cell.reduction else normal)
        return Output(self.classifier(newer.mean(dim=(2, 3))))

    def discretise(self, alpha: Tree) -> Genotype:
        """The two strongest edges of each node."""
        return discretise(alpha["normal"], alpha["reduce"])
