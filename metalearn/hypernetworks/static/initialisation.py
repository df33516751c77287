"""How generated weights are distributed at the start, and embeddings that bring it about."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.hypernetworks.static.config import StartOptions
from metalearn.hypernetworks.static.generator import Target
from metalearn.registry import UserError


class Start(NamedTuple):
    """Mean and standard deviation of one generated parameter's numbers at the start."""

    mean: float
    deviation: float


def start_of(target: Target, options: StartOptions) -> Start:
    """What `options.initial` asks for.

    ordinary: the mean and deviation of the parameter's own start, whatever that was. hyperfan_in and
    hyperfan_out: gain / fan in variance, as He et al. 2015 start ordinary weights, with the fan of the
    main network's layer (Chang, Flokas and Lipson 2020, from memory; they halve it where biases are
    generated too, here those get a small deviation of their own). he_blocks and normal do not go by layers.
    Biases, gains and shifts keep their usual mean, others their own start.
    Raises UserError for he_blocks: only blocks have it.
    """
    if not target.is_matrix:
        own = target.kind == "other" or options.initial == "ordinary"
        mean = 0.0 if target.kind == "bias" and target.deviation else target.mean
        return Start(mean, (target.deviation if own else 0.0) or options.vectors)
    if options.initial == "he_blocks":
        raise UserError(
            "network.generator.start.initial: got 'he_blocks' with a generator that has no basic blocks; "
            "choose ordinary, hyperfan_in, hyperfan_out or normal, or kind=layer_embedding"
        )
    fan = target.fan_out if options.initial == "hyperfan_out" else target.fan_in
    if options.initial == "ordinary":
        return Start(0.0, math.hypot(target.mean, target.deviation))
    return Start(0.0, math.sqrt(options.gain / fan))


def directions(count: int, size: int) -> Float[Tensor, "count size"]:
    """Random vectors of mean square 1, each `size` of them orthogonal.

    Blocks of one layer sum up over its inputs: embeddings that lean towards each other would make its
    outputs larger than their weights' variance says, and blocks are too few for chance to even that out.
    """
    q, r = torch.linalg.qr(torch.randn(math.ceil(count / size), size, size))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # all rotations alike
    return math.sqrt(size) * q.reshape(-1, size)[:count].contiguous()  # QR's columns lie one after another


def semi_orthogonal(*shape: int, deviation: float) -> nn.Parameter:
    """A matrix of orthogonal rows or columns, whichever are fewer, whose numbers have a deviation."""
    gain = deviation * math.sqrt(max(shape))
    return nn.Parameter(nn.init.orthogonal_(torch.empty(*shape), gain))


def truncated_normal(*shape: int, deviation: float) -> nn.Parameter:
    """The same without what lies beyond two deviations, as TensorFlow has it."""
    return nn.Parameter(
        nn.init.trunc_normal_(torch.empty(*shape), 0.0, deviation, -2 * deviation, 2 * deviation)
    )
