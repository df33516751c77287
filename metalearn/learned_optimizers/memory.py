"""What the coordinates of a problem write together and read: a matrix, or the vectors it is a sum of."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.registry import UserError
from metalearn.tree import Tree

LARGEST = 4096  # coordinates of a problem with a matrix: 64 MiB of float32


class Memory(ABC):
    """An operator on vectors of one number a coordinate: identity or zero, plus what was written."""

    @abstractmethod
    def fresh(self, theta: Float[Tensor, "problems coordinates"]) -> Tree:
        """Nothing written yet."""

    @abstractmethod
    def read(
        self, slots: Tree, vector: Float[Tensor, "problems coordinates"]
    ) -> Float[Tensor, "problems coordinates"]:
        """The operator on a vector."""

    @abstractmethod
    def write(
        self,
        slots: Tree,
        left: Float[Tensor, "problems writes coordinates"],
        right: Float[Tensor, "problems writes coordinates"],
    ) -> Tree:
        """The operator plus the outer products left right^T."""


class MatrixMemory(Memory):
    """`memory` [problems coordinates coordinates] (NTM-BFGS)."""

    def __init__(self, identity: bool) -> None:
        self.identity = identity

    def fresh(self, theta: Float[Tensor, "problems coordinates"]) -> Tree:
        """The identity or zero. Raises UserError for more coordinates than a matrix is for."""
        problems, size = theta.shape
        if size > LARGEST:
            raise UserError(
                f"rule.memory: got matrix for {size} coordinates, of which it holds the square; at most "
                f"{LARGEST} are allowed: take rule.memory=pairs or a smaller network"
            )
        start = torch.eye(size, dtype=theta.dtype, device=theta.device) * self.identity
        return {"memory": start.repeat(problems, 1, 1)}

    def read(
        self, slots: Tree, vector: Float[Tensor, "problems coordinates"]
    ) -> Float[Tensor, "problems coordinates"]:
        """The matrix times the vector."""
        return (slots["memory"] @ vector.unsqueeze(2)).squeeze(2)

    def write(
        self,
        slots: Tree,
        left: Float[Tensor, "problems writes coordinates"],
        right: Float[Tensor, "problems writes coordinates"],
    ) -> Tree:
        """All outer products in one product."""
        return {"memory": slots["memory"] + left.mT @ right}


class PairMemory(Memory):
    """`left` and `right` [problems pairs coordinates], the newest last; older ones are forgotten (L-BFGS)."""

    def __init__(self, identity: bool, pairs: int) -> None:
        self.identity, self.pairs = identity, pairs

    def fresh(self, theta: Float[Tensor, "problems coordinates"]) -> Tree:
        """Pairs of zeros."""
        empty = theta.new_zeros(len(theta), self.pairs, theta.shape[1])
        return {"left": empty, "right": empty.clone()}

    def read(
        self, slots: Tree, vector: Float[Tensor, "problems coordinates"]
    ) -> Float[Tensor, "problems coordinates"]:
        """sum_j left_j (right_j . vector), and the vector itself where the memory began as the identity."""
        weights = slots["right"] @ vector.unsqueeze(2)
        found = (weights.mT @ slots["left"]).squeeze(1)
        return vector + found if self.identity else found

    def write(
        self,
        slots: Tree,
        left: Float[Tensor, "problems writes coordinates"],
        right: Float[Tensor, "problems writes coordinates"],
    ) -> Tree:
        """The new pairs in the place of the oldest."""
        written = {"left": left, "right": right}
        return {name: torch.cat([slots[name], new], 1)[:, -self.pairs :] for name, new in written.items()}
