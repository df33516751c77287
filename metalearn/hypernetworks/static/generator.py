"""What makes weights, and what it is told of the weights it is to make."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metalearn.registry import UserError
from metalearn.tree import Tree

Condition = Tensor | int | None  # which task's weights; None where there is one; a tensor holds one index


class Target(NamedTuple):
    """A parameter to be generated."""

    name: str  # dotted, in the main network
    shape: torch.Size
    kind: str  # convolution, linear, bias, gain, shift, other
    fan_in: int  # how many inputs each output sums
    fan_out: int
    mean: float  # of its own start, before it was taken away
    deviation: float

    @property
    def is_matrix(self) -> bool:
        """Whether it sums inputs."""
        return self.kind in ("convolution", "linear")


class Generator(nn.Module, ABC):
    """A module whose outputs are another's parameters; `conditions` tasks each have their own."""

    conditions: int

    @abstractmethod
    def forward(self, condition: Condition = None) -> Tree:
        """Every generated parameter by its dotted name, with its shape."""

    def conditioned(self, embeddings: Tensor, condition: Condition) -> Tensor:
        """embeddings [condition ...] of one condition. Raises UserError if it is none of those there are."""
        if condition is None:
            if self.conditions > 1:
                raise UserError(
                    f"this hypernetwork has weights for {self.conditions} conditions; say which: "
                    f"condition=0 to {self.conditions - 1} in Python; `metalearn train` names none: "
                    "there set network.generator.conditions=1"
                )
            return embeddings.squeeze(0)
        if isinstance(condition, Tensor):
            return embeddings.index_select(0, condition.reshape(1)).squeeze(0)
        if not 0 <= condition < self.conditions:
            raise UserError(f"condition: got {condition}, must be 0 to {self.conditions - 1}")
        return embeddings[condition]
