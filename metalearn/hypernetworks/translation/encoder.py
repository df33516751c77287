"""The encoder: a bidirectional layer at the bottom, others over it (Wu et al. 2016, section 3)."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks.recurrent import Cell, State

MakeCell = Callable[[int], Cell]  # from the number of inputs


class Encoder(nn.Module):
    """Reads sentences of different lengths; what lies behind a sentence's end touches nothing.

    The two cells of the bottom layer have `units` each, so that the second layer reads twice as many and has
    no residual connection; those from `residual_from` on, counted from 1, add their input to their output.
    """

    def __init__(self, make_cell: MakeCell, units: int, layers: int, residual_from: int) -> None:
        super().__init__()
        self.residual_from = residual_from
        self.ahead, self.back = make_cell(units), make_cell(units)
        self.upper = nn.ModuleList(
            [make_cell(2 * units if layer == 2 else units) for layer in range(2, layers + 1)]
        )

    def forward(
        self,
        x: Float[Tensor, "time batch units"],
        present: Bool[Tensor, "time batch"],
        dropout: float,
        fused: bool,
    ) -> Float[Tensor, "time batch units"]:
        """Outputs of the top layer; where a row is not `present` they mean nothing."""
        here, order = present.unsqueeze(-1), reversal(present)
        x = F.dropout(x, dropout, self.training)
        ahead = read(self.ahead, x, here, fused)
        back = gather_times(read(self.back, gather_times(x, order), here, fused), order)
        x = torch.cat([ahead, back], dim=-1)
        for layer, cell in enumerate(self.upper, 2):
            assert isinstance(cell, Cell)
            output = read(cell, F.dropout(x, dropout, self.training), here, fused)
            x = output + x if layer >= self.residual_from else output
        return x


def read(cell: Cell, x: Tensor, present: Bool[Tensor, "time batch 1"], fused: bool) -> Tensor:
    """What a cell says of a sequence from its beginning on."""
    return cell.scan(x, zeros(cell, x.shape[1]), None, present, fused)[0]


def zeros(cell: Cell, batch: int) -> State:
    """The state that a sequence begins with."""
    like = next(cell.parameters())
    return tuple(like.new_zeros(batch, size) for size in cell.sizes)


def reversal(present: Bool[Tensor, "time batch"]) -> Int64[Tensor, "time batch"]:
    """The places of each row's present times from the last to the first; the others stay. Its own inverse."""
    times = torch.arange(len(present), device=present.device).unsqueeze(-1)
    return torch.where(present, present.sum(0) - 1 - times, times)


def gather_times(x: Float[Tensor, "time batch units"], order: Int64[Tensor, "time batch"]) -> Tensor:
    """Each row in its own order of times."""
    return x.gather(0, order.unsqueeze(-1).expand_as(x))
