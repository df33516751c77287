"""What is trained: a module from a batch's inputs to its outputs."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from metalearn.tree import Tree


class Output(NamedTuple):
    """What a network returns."""

    logits: Tensor  # [batch classes] or [batch time symbols]; theta [batch dimension] for functions
    state: Tree = {}  # hidden state after the last symbol; empty where there is none
    auxiliary: Tensor | None = None  # logits of an auxiliary head, in training only


class Network(nn.Module, ABC):
    """A module with one signature for all tasks.

    `progress` is how far training is, 0 to 1; its trainer sets it (drop path grows with it).
    """

    progress: float = 0.0

    @abstractmethod
    def forward(self, x: Tensor, state: Tree | None = None) -> Output:
        """Score inputs; recurrent networks continue from `state`, or from their initial state if None."""
