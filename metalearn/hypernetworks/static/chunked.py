"""A generator that works with any parameter: all of them laid end to end, made chunk by chunk."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks.static.config import ChunkedOptions, StartOptions
from metalearn.hypernetworks.static.generator import Condition, Generator, Target
from metalearn.hypernetworks.static.initialisation import (
    directions,
    semi_orthogonal,
    start_of,
    truncated_normal,
)
from metalearn.tree import Tree

PROBES = 1024  # embeddings that a mean over all embeddings is taken from, at the start


class Chunked(Generator):
    """One network from embeddings to chunks (after von Oswald et al. 2020, from memory), in one pass.

    A chunk's input is its own embedding, that of its layer if layers have them (each then begins a new
    chunk) and that of the condition if there are several. Fixed factors, one for each parameter, take what
    is made to the deviation which that parameter starts with.
    """

    means: Tensor
    scales: Tensor

    def __init__(
        self,
        targets: Sequence[Target],
        options: ChunkedOptions,
        start: StartOptions,
        conditions: int = 1,
    ) -> None:
        super().__init__()
        self.conditions, self.targets = conditions, tuple(targets)
        self.chunks = _chunks(targets, options)
        deviation = start.deviation if start.initial == "normal" else None
        starts = [start_of(target, start) for target in targets]
        self.register_buffer("means", torch.tensor([each.mean for each in starts]))
        self.register_buffer("scales", torch.ones(len(starts)))
        self.chunk_embeddings = _embeddings(deviation, sum(self.chunks), options.embedding)
        self.layer_embeddings = self.condition_embeddings = None
        size = options.embedding
        if options.layer_embedding:
            self.layer_embeddings = _embeddings(
                deviation, len(targets), options.layer_embedding, start.shared
            )
            size += options.layer_embedding
        if conditions > 1:
            self.condition_embeddings = _embeddings(
                deviation, conditions, options.condition_embedding, start.shared
            )
            size += options.condition_embedding
        self.layers = _layers([size, *options.hidden], options, deviation)
        if deviation is None:
            self._standardise([each.deviation for each in starts])

    def forward(self, condition: Condition = None) -> Tree:
        flat = self.layers(self._inputs(condition)).flatten()
        pieces = flat.split(self._sizes(flat.numel()))[: 2 * len(self.targets) : 2]
        parts = zip(self.targets, self.means, self.scales, pieces, strict=True)
        return {
            target.name: torch.addcmul(mean, scale, piece.view(target.shape))
            for target, mean, scale, piece in parts
        }

    @torch.no_grad()
    def _standardise(self, deviations: Sequence[float]) -> None:
        """Take away what chunks have in common, which ReLU gives them, and scale each parameter.

        The common part is found on embeddings of no chunk, so that a few chunks do not become opposites.
        """
        probes = self._inputs(0)[:1].repeat(PROBES, 1)
        size = self.chunk_embeddings.shape[1]
        probes[:, :size] = directions(PROBES, size)
        last = self.layers[-1]
        assert isinstance(last, Affine)
        assert last.bias is not None
        last.bias.copy_(-self.layers(probes).mean(0))
        made = self(0)
        for place, (target, deviation) in enumerate(zip(self.targets, deviations, strict=True)):
            rest = made[target.name] - self.means[place]
            self.scales[place] = deviation / rest.square().mean().sqrt()

    def _inputs(self, condition: Condition) -> Float[Tensor, "chunk size"]:
        parts: list[Tensor] = [self.chunk_embeddings]
        if self.layer_embeddings is not None:
            repeated = [
                row.expand(count, -1) for row, count in zip(self.layer_embeddings, self.chunks, strict=True)
            ]
            parts.append(torch.cat(repeated))
        if self.condition_embeddings is not None:
            row = self.conditioned(self.condition_embeddings, condition)
            parts.append(row.expand(len(self.chunk_embeddings), -1))
        else:
            self.conditioned(self.chunk_embeddings[None], condition)
        return torch.cat(parts, dim=1)

    def _sizes(self, total: int) -> list[int]:
        """Lengths of a parameter and what fills its last chunk up, in turn."""
        numbers = [target.shape.numel() for target in self.targets]
        if self.layer_embeddings is None:
            fill = total - sum(numbers)
            return [*itertools.chain(*((number, 0) for number in numbers)), fill]
        length = total // sum(self.chunks)
        pairs = (
            (number, count * length - number) for number, count in zip(numbers, self.chunks, strict=True)
        )
        return list(itertools.chain(*pairs))


def _chunks(targets: Sequence[Target], options: ChunkedOptions) -> list[int]:
    """How many chunks: of each parameter if layers have embeddings, else of all together."""
    numbers = [target.shape.numel() for target in targets]
    if not options.layer_embedding:
        numbers = [sum(numbers)]
    return [math.ceil(number / options.size) for number in numbers]


def _embeddings(deviation: float | None, count: int, size: int, scale: float = 1.0) -> nn.Parameter:
    if deviation is not None:
        return truncated_normal(count, size, deviation=deviation)
    return nn.Parameter(scale * directions(count, size))


def _layers(sizes: list[int], options: ChunkedOptions, deviation: float | None) -> nn.Sequential:
    """ReLU layers that keep the mean square (He et al. 2015), then the output map, perhaps of low rank."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [Affine(inputs, outputs, 2.0, deviation), nn.ReLU()]
    if options.rank is not None:
        layers.append(Affine(sizes[-1], options.rank, 1.0, deviation, bias=False))
    layers.append(Affine(options.rank or sizes[-1], options.size, 1.0, deviation))
    return nn.Sequential(*layers)


class Affine(nn.Module):
    """A linear map that starts with variance gain / inputs and bias 0, or with a given deviation."""

    def __init__(
        self, inputs: int, outputs: int, gain: float, deviation: float | None, bias: bool = True
    ) -> None:
        super().__init__()
        if deviation is not None:
            self.weight = truncated_normal(outputs, inputs, deviation=deviation)
        else:
            self.weight = semi_orthogonal(outputs, inputs, deviation=math.sqrt(gain / inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """W x + b."""
        return F.linear(x, self.weight, self.bias)
