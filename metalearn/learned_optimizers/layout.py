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
        # [coordinates]: the tensor that each is of
        self.owner = torch.repeat_interleave(self.counts, output_size=self.coordinates)

    def split(self, flat: Float[Tensor, "... coordinates"]) -> list[Tensor]:
        """Each tensor's coordinates, [..., size]."""
        return list(flat.split(self.sizes, -1))

    def unflatten(self, flat: Float[Tensor, "... coordinates"]) -> Tree:
        """The tensors by name, [..., *shape], as views."""
        front = flat.shape[:-1]
        parts = zip(self.shapes.items(), self.split(flat), strict=True)
        return {name: part.view((*front, *shape)) for (name, shape), part in parts}

    def means(self, x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
        """The mean over each tensor's coordinates, which lie along `dim`.

        Over views: 50 times as fast on the CPU as adding by index, and in a fixed order on CUDA.
        """
        return torch.stack([part.mean(dim) for part in x.split(self.sizes, dim)], dim)

    def spread(self, values: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
        """Each tensor's number, along `dim`, at all its coordinates."""
        shape, parts = list(values.shape), []
        for size, part in zip(self.sizes, values.split(1, dim), strict=True):
            shape[dim] = size
            parts.append(part.expand(shape))
        return torch.cat(parts, dim)
