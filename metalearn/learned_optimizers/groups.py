"""Which tensors of a problem an optimizer treats alike."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.layout import Layout

CONV, FC = "conv", "fc"  # convolutional and fully connected parameters
SIZES: tuple[str, ...] = ("vector", "matrix", "kernel")  # up to one, two, more dimensions


def by_kind(layout: Layout) -> list[str]:
    """The kind of each tensor's layer (Andrychowicz et al. 2016, section 3.3).

    A tensor of three or more dimensions is a convolution's kernel, one of two is fully connected. One of less
    (bias, shift, scale) is of the layer before it in the order of coordinates, which is the network's own:
    the layer that it belongs to or that it normalises. Before the first layer: fully connected.
    """
    kinds, last = [], FC
    for shape in layout.shapes.values():
        if len(shape) > 1:
            last = CONV if len(shape) > 2 else FC
        kinds.append(last)
    return kinds


def by_code(layout: Layout) -> list[str]:
    """As the authors' problems.py (`cifar-multi`): only kernels are `conv`, their biases and shifts `fc`."""
    return [CONV if len(shape) > 2 else FC for shape in layout.shapes.values()]


def by_size(layout: Layout) -> list[str]:
    """One of `SIZES` for each tensor, by its number of dimensions."""
    return [SIZES[min(max(len(shape), 1), 3) - 1] for shape in layout.shapes.values()]


def gathered(
    flat: Float[Tensor, "problems coordinates"], layout: Layout, groups: Sequence[str]
) -> dict[str, Float[Tensor, "problems part"]]:
    """The coordinates of each group, in their order; only groups that have any."""
    parts: dict[str, list[Tensor]] = {}
    for part, group in zip(layout.split(flat), groups, strict=True):
        parts.setdefault(group, []).append(part)
    return {group: torch.cat(found, -1) for group, found in parts.items()}


def scattered(
    parts: Mapping[str, Float[Tensor, "problems part"]], layout: Layout, groups: Sequence[str]
) -> Float[Tensor, "problems coordinates"]:
    """What `gathered` took apart, together again."""
    pieces = {}
    for group, part in parts.items():
        sizes = [size for size, owner in zip(layout.sizes, groups, strict=True) if owner == group]
        pieces[group] = iter(part.split(sizes, -1))
    return torch.cat([next(pieces[group]) for group in groups], -1)
