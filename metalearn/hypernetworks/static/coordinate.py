"""The appendix's negative control: a weight is a smooth function of the places of the units it joins."""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks.static.chunked import Affine
from metalearn.hypernetworks.static.config import CoordinateOptions, StartOptions
from metalearn.hypernetworks.static.generator import Condition, Generator, Target
from metalearn.hypernetworks.static.initialisation import start_of
from metalearn.registry import UserError
from metalearn.tree import Tree


class Coordinate(Generator):
    """Appendix A.1: a ReLU network for each linear map, from (x, y) of input and unit to their weight.

    Units of a layer lie on the grid nearest to a square, both coordinates from -1 to 1: 28x28 for MNIST's
    pixels, 16x16 for 256 units. The paper gives 801 parameters in four layers, not their sizes; 4-25-25-1
    with biases is the only net of equal hidden layers that has 801, counting the inputs as a layer.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        options: CoordinateOptions,
        start: StartOptions,
        conditions: int = 1,
    ) -> None:
        super().__init__()
        _check(targets, conditions)
        self.conditions, self.targets = conditions, tuple(targets)
        deviation = start.deviation if start.initial == "normal" else None
        self.nets = nn.ModuleList(Surface(target, options.hidden, deviation) for target in targets)
        if deviation is None:
            for target, surface in zip(targets, self.nets, strict=True):
                assert isinstance(surface, Surface)
                surface.standardise(start_of(target, start).deviation)

    def forward(self, condition: Condition = None) -> Tree:
        self.conditioned(torch.empty(1), condition)
        return {target.name: net() for target, net in zip(self.targets, self.nets, strict=True)}


class Surface(nn.Module):
    """The weights of one linear map."""

    inputs: Tensor
    outputs: Tensor

    def __init__(self, target: Target, hidden: Sequence[int], deviation: float | None) -> None:
        super().__init__()
        outputs, inputs = target.shape
        self.register_buffer("inputs", grid(inputs), persistent=False)
        self.register_buffer("outputs", grid(outputs), persistent=False)
        self.layers = nn.ModuleList(
            Affine(before, after, 2.0, deviation) for before, after in itertools.pairwise([4, *hidden, 1])
        )

    def forward(self) -> Float[Tensor, "output input"]:
        """The first layer is a sum over the two places, so it is not computed for each pair of them."""
        first, *others = self.layers
        assert isinstance(first, Affine)
        of_inputs, of_outputs = first.weight.split(2, dim=1)
        x = F.linear(self.outputs, of_outputs)[:, None] + F.linear(self.inputs, of_inputs, first.bias)
        for layer in others:
            x = layer(x.relu())
        return x.squeeze(-1)

    @torch.no_grad()
    def standardise(self, deviation: float) -> None:
        """Scale and shift the last layer so that the weights have mean 0 and a deviation at the start."""
        last, weights = self.layers[-1], self()
        assert isinstance(last, Affine)
        assert last.bias is not None
        factor = deviation / weights.std()
        last.weight.mul_(factor)
        last.bias.copy_(-factor * weights.mean())


def grid(count: int) -> Float[Tensor, "unit 2"]:
    """The places of `count` units, row by row, on the grid nearest to a square."""
    rows = max(rows for rows in range(1, math.isqrt(count) + 1) if count % rows == 0)
    axes = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in (rows, count // rows)]
    return torch.cartesian_prod(*axes)


def _check(targets: Sequence[Target], conditions: int) -> None:
    for target in targets:
        if target.kind != "linear":
            raise UserError(
                f"{target.name}: a {target.kind}; a coordinate generator makes the weights of linear maps "
                "alone: set network.generates=[linears], or choose another network.generator.kind"
            )
    if conditions > 1:
        raise UserError(
            f"network.generator.conditions: got {conditions} with a coordinate generator, which has no "
            "embeddings; set it to 1 or choose another network.generator.kind"
        )
