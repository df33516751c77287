"""The continuous relaxation of the cell space: edges hold every operation, mixed by weights."""

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metalearn.darts.cell import CellInputs, CellShape, cell_shapes, drop_path, image_shape, stem, stride_from
from metalearn.darts.config import SupernetOptions
from metalearn.darts.genotype import INPUTS, Genotype, discretise, encode, random_genotype
from metalearn.darts.operations import CANDIDATES, candidate
from metalearn.darts.space import Choices, Mixture, SearchSpace
from metalearn.network import Output
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class MixedEdge(nn.Module):
    """The candidates of one edge; `none` holds its share of the weights and adds nothing."""

    def __init__(self, channels: int, stride: int, allowed: list[bool]) -> None:
        super().__init__()
        self.operations = nn.ModuleDict(
            {
                name: candidate(name, channels, stride)
                for name, used in zip(CANDIDATES, allowed, strict=True)
                if used and name != "none"
            }
        )

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        weights: Float[Tensor, " operation"],
        running: list[bool] | None,
        drop: float,
        skip_dropout: float,
    ) -> Tensor:
        """The sum of the running operations' outputs by `weights`, in the order of CANDIDATES."""
        mixed = x.new_zeros(())
        for name, operation in self.operations.items():
            place = CANDIDATES.index(name)
            if running is None or running[place]:
                mixed = mixed + weights[place] * _regularised(name, operation, x, drop, skip_dropout)
        return mixed


def _regularised(name: str, operation: nn.Module, x: Tensor, drop: float, skip_dropout: float) -> Tensor:
    y = operation(x)
    if skip_dropout and name == "skip_connect":
        y = nn.functional.dropout(y, skip_dropout)
    if drop and not isinstance(operation, nn.Identity):
        y = drop_path(y, drop)
    return y


class MixedCell(nn.Module):
    """A cell whose nodes take a mixed edge from each node before them.

    `forward` is the seam for a faster form that computes the edges of a cell together.
    """

    def __init__(self, shape: CellShape, nodes: int, allowed: Bool[Tensor, "edge operation"]) -> None:
        super().__init__()
        self.reduction, self.nodes = shape.reduction, nodes
        self.inputs = CellInputs(shape, affine=False)
        sources = _sources(nodes)
        self.edges = nn.ModuleList(
            MixedEdge(shape.channels, stride_from(source, shape.reduction), row)
            for source, row in zip(sources, allowed.tolist(), strict=True)
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
        """The concatenated intermediate nodes."""
        nodes, index = self.inputs(older, newer), 0
        for _ in range(self.nodes):
            incoming = []
            for node in nodes:
                active = running[index] if running is not None else None
                if active is None or any(active[1:]):
                    edge = self.edges[index]
                    incoming.append(edge(node, weights[index], active, drop, skip_dropout))
                index += 1
            nodes.append(torch.stack(torch.broadcast_tensors(*incoming)).sum(dim=0))
        return torch.cat(nodes[INPUTS:], dim=1)


def _targets(nodes: int) -> tuple[int, ...]:
    return tuple(node for node in range(INPUTS, INPUTS + nodes) for _ in range(node))


def _sources(nodes: int) -> tuple[int, ...]:
    return tuple(source for node in range(INPUTS, INPUTS + nodes) for source in range(node))


class Supernet(SearchSpace):
    """The search network for images of `spec`. Raises UserError for a task of anything else.

    `allowed` says which operations are built on which edge; None: all of the space.
    """

    def __init__(
        self,
        options: SupernetOptions,
        spec: TaskSpec,
        allowed: dict[str, Bool[Tensor, "edge operation"]] | None = None,
    ) -> None:
        inputs, _, _ = image_shape(options.name, spec)
        super().__init__()
        self.options, self.spec = options, spec
        sources, targets = _sources(options.nodes), _targets(options.nodes)
        everything = torch.ones(len(sources), len(CANDIDATES), dtype=torch.bool)
        allowed = allowed or dict.fromkeys(("normal", "reduce"), everything)
        self.choices = {kind: Choices(CANDIDATES, targets, sources, mask) for kind, mask in allowed.items()}
        first = options.stem_multiplier * options.channels
        shapes = cell_shapes(options.cells, options.channels, first, (options.nodes, options.nodes))
        self.stem = stem(inputs, first)
        self.cells = nn.ModuleList(
            MixedCell(shape, options.nodes, allowed["reduce" if shape.reduction else "normal"])
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
        older = newer = self.stem(x.contiguous(memory_format=torch.channels_last))
        for cell in self.cells:
            kind = "reduce" if cell.reduction else "normal"
            mixed = cell(
                older, newer, mixture.weights[kind], running[kind], self._drop(), self._skip_dropout()
            )
            older, newer = newer, mixed
        return Output(self.classifier(newer.mean(dim=(2, 3))))

    def _even(self, like: Tensor) -> Mixture:
        return Mixture({kind: like.new_full(c.shape, 1 / c.shape[1]) for kind, c in self.choices.items()})

    def _drop(self) -> float:
        return self.drop_path if self.training else 0.0

    def _skip_dropout(self) -> float:
        return self.skip_dropout if self.training else 0.0

    def discretise(self, strengths: Tree) -> Genotype:
        """The two strongest edges of each node."""
        return discretise(strengths["normal"], strengths["reduce"])

    def encode(self, genotype: Genotype) -> dict[str, Bool[Tensor, "edge operation"]]:  # type: ignore[override]
        """Where its operations stand among CANDIDATES."""
        return {"normal": encode(genotype.normal), "reduce": encode(genotype.reduce)}

    def sample(self, rng: torch.Generator) -> Genotype:
        """Two distinct predecessors for each node, operations other than none."""
        return random_genotype(self.options.nodes, rng)

    def restricted(self, cells: int, allowed: dict[str, Bool[Tensor, "edge operation"]]) -> "Supernet":
        """The same with so many cells and the allowed operations."""
        return Supernet(dataclasses.replace(self.options, cells=cells), self.spec, allowed)
