"""The ordinary LSTM, with the switches of the HyperLSTM's paper: its control and its hyper cell."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.hypernetworks.config import CellOptions
from metalearn.hypernetworks.fused.lstm import LSTMScan
from metalearn.hypernetworks.fused.sequence import fusable, norm_of
from metalearn.hypernetworks.recurrent import (
    GATES,
    Affine,
    Cell,
    Norms,
    Present,
    Stack,
    State,
    advance,
    by_gate,
    dropout_masks,
    each,
    gate_constants,
    hold,
    normalise,
    project,
    start_weights,
)


class LSTMCell(Cell):
    """An LSTM with a forget bias, recurrent dropout (on tanh g) and, if asked for, layer normalisation.

    Start: recurrent weights orthogonal gate by gate; input weights the same ("paper") or Glorot uniform
    ("code"); biases 0.
    """

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions) -> None:
        super().__init__()
        self.options = options
        self.sizes = (hidden_size, hidden_size)
        self.weight_x = nn.Parameter(torch.empty(input_size, GATES * hidden_size))
        self.weight_h = nn.Parameter(torch.empty(hidden_size, GATES * hidden_size))
        self.bias = nn.Parameter(torch.zeros(GATES * hidden_size))
        self.norms = Norms(hidden_size) if options.layer_norm else None
        start_weights(self.weight_x, self.weight_h, options.initial)

    def scan(
        self,
        x: Tensor,
        state: State,
        scale: Tensor | None = None,
        present: Present = None,
        fused: bool = False,
    ) -> tuple[Tensor, State]:
        bias, affine = gate_constants(self.bias, self.norms, self.options.forget_bias)
        inputs = project(x, self.weight_x, scale) + bias
        masks, rows = self.masks(len(x), state[1]), each(present, len(x))
        if fused and fusable(inputs):
            norm = norm_of(self.norms, affine)
            given = torch.is_grad_enabled(), masks, rows, inputs, *state, self.weight_h, *norm
            outputs, *last = LSTMScan.apply(*given)  # type: ignore[misc]
            return outputs, tuple(last)
        outputs = []
        for projected, mask, here in zip(inputs.unbind(0), masks, rows, strict=True):
            total = torch.addmm(projected, state[0], self.weight_h)
            state = hold(here, self.advance(total, state[1], affine, mask), state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def advance(
        self,
        total: Float[Tensor, "batch gates*units"],
        cell: Tensor,
        affine: Affine | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Output and cell state from the sum of a step's projections."""
        return advance(normalise(by_gate(total), affine), cell, self.norms, mask)

    def masks(self, times: int, like: Float[Tensor, "batch units"]) -> Sequence[Tensor | None]:
        """Recurrent dropout of each step."""
        return dropout_masks(times, like, self.options.recurrent_keep if self.training else 1.0)


class LSTM(Stack):
    """Drop-in for `torch.nn.LSTM`: the state is (h, c)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        options: CellOptions,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        inputs = [input_size] + [hidden_size] * (num_layers - 1)
        super().__init__([LSTMCell(size, hidden_size, options) for size in inputs], batch_first, dropout)
