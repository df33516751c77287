"""What proposes queries: a recurrent network as pure functions of its weights."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from metalearn.tree import Tree


class Controller(ABC):
    """Numbers in, numbers out, and a state in between; all functions of a batch in the same products."""

    inputs: int  # what a step is told
    outputs: int

    @abstractmethod
    def init(self, rng: Generator) -> Tree:
        """Fresh weights, on the CPU."""

    @abstractmethod
    def state(self, batch: int, like: Tensor) -> Tree:
        """What it is before the first step, of the type and on the device of `like`; leaves [batch, ...]."""

    @abstractmethod
    def apply(
        self, meta: Tree, features: Float[Tensor, "batch inputs"], state: Tree
    ) -> tuple[Float[Tensor, "batch outputs"], Tree]:
        """One step."""


class Lstm(Controller):
    """An LSTM layer and a linear map (Chen et al. 2017, section 2).

    Weights: `lstm.weight` [inputs + hidden, 4 hidden], columns for the input, forget and output gates and the
    candidate; `lstm.bias`; `output.weight` [hidden, outputs], `output.bias`. State: `hidden` and `cell`.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, forget_bias: float) -> None:
        self.inputs, self.outputs, self.hidden, self.forget_bias = inputs, outputs, hidden, forget_bias

    def init(self, rng: Generator) -> Tree:
        """Uniform within 1/sqrt(hidden) as torch's own LSTM, biases 0 but for the forget gate's."""
        bias = torch.zeros(4, self.hidden)
        bias[1] = self.forget_bias
        return {
            "lstm.weight": uniform(self.inputs + self.hidden, 4 * self.hidden, self.hidden, rng),
            "lstm.bias": bias.flatten(),
            "output.weight": uniform(self.hidden, self.outputs, self.hidden, rng),
            "output.bias": torch.zeros(self.outputs),
        }

    def state(self, batch: int, like: Tensor) -> Tree:
        return {name: like.new_zeros(batch, self.hidden) for name in ("hidden", "cell")}

    def apply(
        self, meta: Tree, features: Float[Tensor, "batch inputs"], state: Tree
    ) -> tuple[Float[Tensor, "batch outputs"], Tree]:
        after = self.advance(meta, features, state)
        return torch.addmm(meta["output.bias"], after["hidden"], meta["output.weight"]), after

    def advance(self, meta: Tree, features: Tensor, state: Tree) -> Tree:
        """The next `hidden` and `cell` (Hochreiter and Schmidhuber 1997, with forget gates)."""
        seen = torch.cat([features, state["hidden"]], 1)
        *gates, candidate = torch.addmm(meta["lstm.bias"], seen, meta["lstm.weight"]).chunk(4, 1)
        write, keep, show = (torch.sigmoid(gate) for gate in gates)
        cell = keep * state["cell"] + write * torch.tanh(candidate)
        return {"hidden": show * torch.tanh(cell), "cell": cell}


def uniform(rows: int, columns: int, fan: int, rng: Generator) -> Float[Tensor, "rows columns"]:
    """Within 1/sqrt(fan) of zero."""
    return (2 * torch.rand(rows, columns, generator=rng) - 1) / math.sqrt(fan)
