"""Attention by a perceptron with one hidden layer (Wu et al. 2016, equation 4)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Memory(NamedTuple):
    """A source sentence as the decoder sees it."""

    keys: Float[Tensor, "batch source attention"]
    values: Float[Tensor, "batch source units"]
    present: Bool[Tensor, "batch source"]  # each row has at least one

    def repeat(self, times: int) -> "Memory":
        """Every sentence `times` times, copies side by side."""
        return Memory(*(part.repeat_interleave(times, 0) for part in self))


class Attention(nn.Module):
    """Weights of the source's places: softmax of v tanh(W query + U value + b)."""

    def __init__(self, units: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(units, hidden, bias=False)
        self.key = nn.Linear(units, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def remember(
        self, values: Float[Tensor, "batch source units"], present: Bool[Tensor, "batch source"]
    ) -> Memory:
        """What is the same at each step of the decoder."""
        return Memory(self.key(values), values, present)

    def forward(
        self, query: Float[Tensor, "batch units"], memory: Memory
    ) -> tuple[Float[Tensor, "batch units"], Float[Tensor, "batch source"]]:
        """The mean of the memory's values under the weights, and the weights."""
        scores = self.score(torch.tanh(self.query(query).unsqueeze(1) + memory.keys)).squeeze(-1)
        weights = scores.masked_fill(~memory.present, -torch.inf).softmax(-1)
        return torch.bmm(weights.unsqueeze(1), memory.values.to(weights.dtype)).squeeze(1), weights
