"""The paper's generator: kernels tiled from basic blocks, one embedding each, through two linear maps."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.hypernetworks.static.config import LayerEmbeddingOptions, StartOptions
from metalearn.hypernetworks.static.generator import Condition, Generator, Target
from metalearn.hypernetworks.static.initialisation import (
    Start,
    directions,
    semi_orthogonal,
    start_of,
    truncated_normal,
)
from metalearn.registry import UserError
from metalearn.tree import Tree


class Block(NamedTuple):
    """What all basic blocks of one family have in common: they share their two linear maps."""

    sort: str  # "kernel", or the kind of vector: those start around another mean
    inputs: int
    outputs: int
    window: tuple[int, ...]  # f x f; empty for linear maps and vectors

    @property
    def name(self) -> str:
        """A name for modules and errors."""
        return "_".join([self.sort, *("x".join(map(str, part)) for part in (self.window, self[1:3]) if part)])


class Tiling(NamedTuple):
    """How a parameter is cut: rows x columns blocks, row-major over (input block, output block)."""

    target: Target
    rows: int
    columns: int
    block: Block


class LayerEmbedding(Generator):
    """Equations 1 to 3; all blocks of a shape, of all layers, are made by two products.

    A kernel [outputs inputs f f] is a grid of blocks; a linear map is a kernel without a window, a vector
    [size] one with a single input. Layers with blocks of the same shape share W_i, B_i, W_out and B_out.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        options: LayerEmbeddingOptions,
        start: StartOptions,
        conditions: int = 1,
    ) -> None:
        super().__init__()
        self.conditions = conditions
        self.names = [target.name for target in targets]
        families: dict[Block, list[Tiling]] = {}
        for target in targets:
            tiling = _tiling(target, options)
            families.setdefault(tiling.block, []).append(tiling)
        self.families = nn.ModuleDict(
            {block.name: Family(tilings, options, start, conditions) for block, tilings in families.items()}
        )

    def forward(self, condition: Condition = None) -> Tree:
        made: Tree = {}
        for family in self.families.values():
            assert isinstance(family, Family)
            made |= family(self.conditioned(family.embeddings, condition))
        return {name: made[name] for name in self.names}


class Family(nn.Module):
    """All blocks of one shape: their embeddings and the maps they share."""

    def __init__(
        self,
        tilings: Sequence[Tiling],
        options: LayerEmbeddingOptions,
        start: StartOptions,
        conditions: int,
    ) -> None:
        super().__init__()
        self.tilings, self.block = tuple(tilings), tilings[0].block
        starts = [_start(tiling, start) for tiling in tilings]
        largest = max(each.deviation for each in starts)
        draw = _Draw(None if start.initial != "normal" else start.deviation)
        self.embeddings = draw.embeddings(
            conditions, [t.rows * t.columns for t in tilings], [s.deviation / largest for s in starts],
            options.embedding,
        )  # fmt: skip
        inputs, width = self.block.inputs, self.block.outputs * math.prod(self.block.window)
        self.weight_in = draw.weight(options.embedding, inputs * options.hidden, 1.0)
        self.bias_in = nn.Parameter(torch.zeros(inputs * options.hidden))
        rank = options.rank
        self.weight_down = None if rank is None else draw.weight(options.hidden, rank, 1.0)
        self.weight_out = draw.weight(options.hidden if rank is None else rank, width, largest)
        self.bias_out = nn.Parameter(torch.full((width,), starts[0].mean))

    def forward(self, embeddings: Float[Tensor, "block size"]) -> Tree:
        """a = W_i z + B_i for all blocks and inputs, then K_i = W_out a_i + B_out; cut into layers."""
        sliced = torch.addmm(self.bias_in, embeddings, self.weight_in)
        sliced = sliced.view(len(embeddings) * self.block.inputs, -1)
        if self.weight_down is not None:
            sliced = sliced @ self.weight_down
        made = torch.addmm(self.bias_out, sliced, self.weight_out).view(len(embeddings), -1)
        layers = made.split([tiling.rows * tiling.columns for tiling in self.tilings])
        return {
            tiling.target.name: self._assembled(layer, tiling)
            for layer, tiling in zip(layers, self.tilings, strict=True)
        }

    def _assembled(self, blocks: Float[Tensor, "block numbers"], tiling: Tiling) -> Tensor:
        """Blocks [row column input output window] as a kernel [column output row input window]."""
        inputs, outputs, window = self.block[1:]
        grid = blocks.view(tiling.rows, tiling.columns, inputs, outputs, math.prod(window))
        return grid.permute(1, 3, 0, 2, 4).reshape(tiling.target.shape)


class _Draw:
    """The start of a family's weights: by the variance wanted of its outputs, or all alike."""

    def __init__(self, deviation: float | None) -> None:
        self.deviation = deviation

    def weight(self, inputs: int, outputs: int, scale: float) -> nn.Parameter:
        """[inputs outputs]; takes inputs of mean square 1 to outputs of deviation `scale`."""
        if self.deviation is not None:
            return truncated_normal(inputs, outputs, deviation=self.deviation)
        return semi_orthogonal(inputs, outputs, deviation=scale / math.sqrt(inputs))

    def embeddings(
        self, conditions: int, counts: Sequence[int], scales: Sequence[float], size: int
    ) -> nn.Parameter:
        """[condition block size]; a layer's scale goes into its embeddings: all else is shared."""
        if self.deviation is not None:
            return truncated_normal(conditions, sum(counts), size, deviation=self.deviation)
        rows = directions(conditions * sum(counts), size).view(conditions, -1, size)
        scale = torch.tensor(scales).repeat_interleave(torch.tensor(counts))
        return nn.Parameter(rows * scale[:, None])


def _start(tiling: Tiling, options: StartOptions) -> Start:
    """he_blocks: as if every block were a layer of its own, one scale for all; BatchNorm hides it."""
    block = tiling.block
    if options.initial == "he_blocks" and tiling.target.is_matrix:
        return Start(0.0, math.sqrt(options.gain / (block.inputs * math.prod(block.window))))
    return start_of(tiling.target, options)


def _tiling(target: Target, options: LayerEmbeddingOptions) -> Tiling:
    outputs, inputs, *window = (*target.shape, 1) if len(target.shape) == 1 else target.shape
    sort = "kernel" if target.is_matrix else target.kind
    block = Block(sort, _side(target, inputs, options), _side(target, outputs, options), tuple(window))
    return Tiling(target, inputs // block.inputs, outputs // block.outputs, block)


def _side(target: Target, size: int, options: LayerEmbeddingOptions) -> int:
    """Channels of a block along a side of `size`: the most that divide it, no more than asked for."""
    if size % options.block == 0:
        return options.block
    vector = len(target.shape) == 1 and size == 1
    if options.undivided == "refuse" and not vector:
        raise UserError(
            f"{target.name}: a side of {size} is no multiple of block {options.block}; leave it out "
            "(network.exclude), choose another network.generator.layer_embedding.block, or set "
            "network.generator.layer_embedding.undivided=shrink to cut it into smaller blocks"
        )
    return max(part for part in range(1, min(size, options.block) + 1) if size % part == 0)
