"""Where the tensors of one problem lie among its coordinates."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.tree import Tree


class Layout:
    """Tensors one after the other in one vector of all coordinates, in a fixed order.

    Rules work on `[..., coordinates]`; what they need of whole tensors they get by `means` and `spread`, for
    all tensors at once.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.coordinates = sum(self.sizes)
        self.counts = torch.tensor(self.sizes, device=device)
        self.owner = torch.repeat_interleave(self.counts)  # [coordinates]: the tensor that each is of

    def split(self, flat: Float[Tensor, "... coordinates"]) -> list[Tensor]:
        """Each tensor's coordinates, [..., size]."""
        return list(flat.split(self.sizes, -1))

    def unflatten(self, flat: Float[Tensor, "... coordinates"]) -> Tree:
        """The tensors by name, [..., *shape], as views."""
        front = flat.shape[:-1]
        parts = zip(self.shapes.items(), self.split(flat), strict=True)
        return {name: part.view(*front, *shape) for (name, shape), part in parts}

    def means(self, x: Float[Tensor, "... coordinates"]) -> Float[Tensor, "... tensors"]:
        """The mean over each tensor's coordinates."""
        sums = x.new_zeros(*x.shape[:-1], len(self.sizes)).index_add(-1, self.owner, x)
        return sums / self.counts

    def spread(self, values: Float[Tensor, "... tensors"]) -> Float[Tensor, "... coordinates"]:
        """Each tensor's number at all its coordinates."""
        return values.index_select(-1, self.owner)
