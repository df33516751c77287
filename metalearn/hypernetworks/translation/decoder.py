"""The decoder: its bottom layer asks, all layers read the answer (Wu et al. 2016, section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks.recurrent import Cell, State
from metalearn.hypernetworks.translation.attention import Attention, Memory
from metalearn.hypernetworks.translation.encoder import MakeCell, zeros

States = tuple[State, ...]  # one a layer


class Decoder(nn.Module):
    """Layers of a cell each; every one reads the context beside what the layer below says.

    The context of a step answers the bottom layer's output of the step before. Layers from `residual_from`
    on, counted from 1, add what the layer below says to their output.
    """

    def __init__(
        self, make_cell: MakeCell, units: int, layers: int, residual_from: int, attention_units: int
    ) -> None:
        super().__init__()
        self.residual_from = residual_from
        self.attention = Attention(units, attention_units)
        self.cells = nn.ModuleList([make_cell(2 * units) for _ in range(layers)])

    def initial_states(self, batch: int) -> States:
        """Zeros: all that a decoder knows of the source comes by attention."""
        return tuple(zeros(cell, batch) for cell in self._cells())

    def forward(
        self,
        x: Float[Tensor, "time batch units"],
        memory: Memory,
        states: States,
        dropout: float,
        fused: bool,
    ) -> tuple[Float[Tensor, "time batch units"], Float[Tensor, "time batch source"], States]:
        """Outputs of the top layer, the attention's weights, and the last states."""
        bottom, *upper = self._cells()
        dropout = dropout if self.training else 0.0
        x, contexts, weights, last = self._read_bottom(bottom, x, memory, states[0], dropout)
        lasts = [last]
        for layer, (cell, state) in enumerate(zip(upper, states[1:], strict=True), 2):
            inputs = F.dropout(torch.cat([x, contexts], dim=-1), dropout)
            output, last = cell.scan(inputs, state, fused=fused)
            x = output + x if layer >= self.residual_from else output
            lasts.append(last)
        return x, weights, tuple(lasts)

    def _read_bottom(
        self, cell: Cell, x: Tensor, memory: Memory, state: State, dropout: float
    ) -> tuple[Tensor, Tensor, Tensor, State]:
        """Step by step, for each asks anew: outputs, contexts, weights at each time, and the last state."""
        steps = []
        for now in x.unbind(0):
            context, weights = self.attention(state[0], memory)
            state = cell(F.dropout(torch.cat([now, context], dim=-1), dropout), state)
            steps.append((state[0], context, weights))
        outputs, contexts, weights = (torch.stack(parts) for parts in zip(*steps, strict=True))
        return outputs, contexts, weights, state

    def _cells(self) -> Sequence[Cell]:
        cells = [cell for cell in self.cells if isinstance(cell, Cell)]
        assert len(cells) == len(self.cells)
        return cells
