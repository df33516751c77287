"""The ordinary tanh RNN: the control of the HyperRNN and its hyper cell (Ha, Dai and Le 2017, eq. 4)."""

import torch
from torch import Tensor, nn

from metalearn.hypernetworks.recurrent import Cell, Present, Stack, each, hold, project
from metalearn.hypernetworks.sequences import State


class RNNCell(Cell):
    """h' = tanh(W_h h + W_x x + b). Start: both weights orthogonal, the bias 0."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.sizes = (hidden_size,)
        self.weight_x = nn.Parameter(nn.init.orthogonal_(torch.empty(input_size, hidden_size)))
        self.weight_h = nn.Parameter(nn.init.orthogonal_(torch.empty(hidden_size, hidden_size)))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def scan(
        self,
        x: Tensor,
        state: State,
        scale: Tensor | None = None,
        present: Present = None,
        fused: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, State]:
        inputs = project(x, self.weight_x, scale) + self.bias
        outputs = []
        for now, here in zip(inputs.unbind(0), each(present, len(x)), strict=True):
            state = hold(here, (torch.tanh(torch.addmm(now, state[0], self.weight_h)),), state)
            outputs.append(state[0])
        return torch.stack(outputs), state


class RNN(Stack):
    """Drop-in for `torch.nn.RNN`: the state is (h,)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        inputs = [input_size] + [hidden_size] * (num_layers - 1)
        super().__init__([RNNCell(size, hidden_size) for size in inputs], batch_first, dropout)
