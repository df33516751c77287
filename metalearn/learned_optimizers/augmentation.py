"""Random scaling of training problems: a rule meets gradients of many sizes (Lv, Jiang and Li 2017)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.config import AugmentationOptions
from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.rng import generator
from metalearn.task import Split


def rescaled(
    optimizee: Optimizee, options: AugmentationOptions, split: Split, numbers: Sequence[int]
) -> Optimizee:
    """The optimizee for these numbers alone, in variables theta / c: f(c theta') from theta' = theta_0 / c.

    log c is uniform on [-variables, variables], one for each coordinate, tensor or problem. Losses at the
    start are as before, gradients c times as large.
    """
    if not options.variables:
        return optimizee
    layout = optimizee.layout
    columns = {"coordinate": layout.coordinates, "tensor": len(layout.sizes), "problem": 1}[options.by]
    factors = _factors(optimizee, "rescale", split, numbers, columns, options.variables)
    if options.by == "tensor":
        factors = layout.spread(factors)
    return optimizee.in_units(factors.expand(-1, layout.coordinates))


def loss_scale(
    optimizee: Optimizee, options: AugmentationOptions, split: Split, numbers: Sequence[int]
) -> Float[Tensor, "problems 1"] | None:
    """How many times each problem's loss the rule descends; log of it is uniform on [-loss, loss]."""
    if not options.loss:
        return None
    return _factors(optimizee, "loss scale", split, numbers, 1, options.loss)


def _factors(
    optimizee: Optimizee, name: str, split: Split, numbers: Sequence[int], columns: int, reach: float
) -> Float[Tensor, "problems columns"]:
    shape = (optimizee.functions, columns)
    drawn = [torch.rand(shape, generator=generator(optimizee.seed, name, split, n)) for n in numbers]
    return (reach * (2 * torch.cat(drawn) - 1)).exp().to(optimizee.device)
