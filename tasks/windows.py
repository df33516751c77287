"""How long the batches of a text are: lengths drawn around one or two means (Merity et al. 2018, section 5).

A pass is cut into a fixed number of windows, what it has over the mean length. Their lengths are drawn, then
the rest that the draws leave to the whole, or take too much, is spread over the windows evenly, one symbol
each at a time, so that a pass reads every symbol once. The authors read on until the text ends instead, in
a number of windows that differs from pass to pass.
"""

import math
from itertools import accumulate, pairwise

import torch
from jaxtyping import Int64
from torch import Tensor

from metalearn.registry import UserError
from tasks.config import TextOptions

Span = tuple[int, int]  # first column and number of columns


def is_jittered(options: TextOptions) -> bool:
    """Whether lengths are drawn at all."""
    return options.half_probability > 0 or options.time_deviation > 0


def check(options: TextOptions) -> None:
    """Refuse bounds between which no length lies. Raises UserError."""
    if is_jittered(options) and options.least_time > options.time:
        raise UserError(
            f"task.least_time: got {options.least_time}, must be at most task.time={options.time}, around "
            "which lengths are drawn; lower it, or set task.half_probability=0 task.time_deviation=0"
        )


def mean_time(options: TextOptions) -> float:
    """The mean of the lengths that `draw` gives, symbols."""
    half = options.half_probability
    return (1 - half) * _mean_around(options.time, options) + half * _mean_around(options.time / 2, options)


def _mean_around(center: float, options: TextOptions) -> float:
    """E[n] = sum over k >= 1 of P(n >= k), for n drawn around `center`, rounded down and clipped."""
    least, largest = _bounds(options)
    if not options.time_deviation:
        return min(max(math.floor(center), least), largest)
    scale = options.time_deviation * math.sqrt(2)
    return least + sum(math.erfc((k - center) / scale) / 2 for k in range(least + 1, largest + 1))


def draw(options: TextOptions, count: int, rng: torch.Generator) -> Int64[Tensor, " count"]:
    """Lengths by chance alone, symbols."""
    halved = torch.rand(count, dtype=torch.float64, generator=rng) < options.half_probability
    centers = torch.where(halved, options.time / 2, float(options.time))
    noise = torch.randn(count, dtype=torch.float64, generator=rng)
    return (centers + options.time_deviation * noise).floor().long().clamp(*_bounds(options))


def _bounds(options: TextOptions) -> tuple[int, int]:
    return options.least_time, options.time + options.extra_time


def spans(options: TextOptions, columns: int, count: int, rng: torch.Generator) -> list[Span]:
    """Columns [0, columns) as `count` windows in order."""
    least, largest = _bounds(options)
    bounds = min(least, columns // count), max(largest, math.ceil(columns / count))
    lengths = _filled(draw(options, count, rng), columns, *bounds)
    return [(start, end - start) for start, end in pairwise(accumulate(lengths.tolist(), initial=0))]


def _filled(lengths: Tensor, total: int, least: int, largest: int) -> Tensor:
    """`lengths` with sum `total`: one more or less at evenly spaced places that have room, until it holds."""
    while rest := total - int(lengths.sum()):  # on the CPU, as all drawing
        room = (lengths < largest if rest > 0 else lengths > least).nonzero().flatten()
        step = min(abs(rest), len(room))
        chosen = room[torch.arange(step) * len(room) // step]
        lengths[chosen] += 1 if rest > 0 else -1
    return lengths
