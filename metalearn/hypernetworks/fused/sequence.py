"""What passes over a sequence have in common: memory, rows that have ended, and where they may be used."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypernetworks.fused.blocks import STATISTICS, Grads, Norm, Step
from metalearn.hypernetworks.recurrent import GATES, Affine, Norms
from metalearn.kernels import REALS
from metalearn.registry import UserError

Times = Sequence[Tensor | None]  # something of each time step, or nothing


class Kept(NamedTuple):
    """What a cell leaves for the way back; the states begin with the start."""

    hidden: Float[Tensor, "time_and_one batch units"]
    cell: Float[Tensor, "time_and_one batch units"]
    gates: Float[Tensor, "time batch gates*units"]
    statistics: Float[Tensor, "time batch statistics"]  # with layer normalisation, else empty

    def steps(self, masks: Times) -> list[Step]:
        """Views of each time."""
        (_, *hidden), cell, gates = self.hidden.unbind(0), self.cell.unbind(0), self.gates.unbind(0)
        statistics = self.statistics.unbind(0) or [None] * len(gates)
        return list(map(Step, gates, cell[:-1], cell[1:], hidden, masks, statistics))

    def hold(self, time: int, here: Tensor | None) -> None:
        """Where a row has ended its old state stays."""
        if here is not None:
            for states in (self.hidden, self.cell):
                states[time + 1].copy_(torch.where(here, states[time + 1], states[time]))


class Carried:
    """Gradients of a cell on their way back through time.

    At each step: `enter`, then the step's own backward pass with `hidden` and `cell`, then `leave`.
    """

    def __init__(self, hidden: Tensor, cell: Tensor, norm: Norm | None) -> None:
        self.hidden, self.cell = _copy(hidden), _copy(cell)
        self.norms = None if norm is None else hidden.new_zeros(sum(part.numel() for part in norm))
        self._past: tuple[Tensor, Tensor] | None = None

    def enter(self, here: Tensor | None) -> None:
        """What belongs to rows that have ended goes past the step."""
        if here is None:
            return
        gone = ~here
        self._past = self.hidden * gone, self.cell * gone
        self.hidden, self.cell = self.hidden * here, self.cell * here

    def grads(self, gates: Tensor) -> Grads:
        return Grads(self.hidden, self.cell, gates, self.norms)

    def leave(self, hidden: Tensor) -> None:
        """`hidden` is the gradient by the step's old output, `cell` is that of its old cell state by now."""
        self.hidden = hidden
        if self._past is not None:
            self.hidden, self.cell = self.hidden + self._past[0], self.cell + self._past[1]

    def by_norms(self, norm: Norm | None) -> list[Tensor]:
        """Gradients by gains and shifts, in the order of `Norm`."""
        if norm is None or self.norms is None:
            return []
        return list(self.norms.split([part.numel() for part in norm]))


def fusable(like: Tensor) -> bool:
    """Whether the fused form may run: in full precision, not within a trace."""
    autocast = torch.is_autocast_enabled(like.device.type)
    return like.dtype in REALS and not autocast and not torch.compiler.is_compiling()


def memory(times: int, hidden: Tensor, cell: Tensor, norm: Norm | None, keep: bool) -> Kept:
    batch, units = hidden.shape
    kept = Kept(
        hidden.new_empty(times + 1, batch, units),
        hidden.new_empty(times + 1, batch, units),
        room(hidden, times, GATES * units, keep),
        room(hidden, 0 if norm is None else times, STATISTICS, keep),
    )
    kept.hidden[0], kept.cell[0] = hidden, cell
    return kept


def room(like: Tensor, times: int, columns: int, keep: bool) -> Float[Tensor, "time batch columns"]:
    """New memory; the same for all times if there is no way back for which to `keep` it."""
    found = like.new_empty(times if keep else min(times, 1), len(like), columns)
    return found.expand(times, -1, -1)


def norm_of(norms: Norms | None, affine: Affine | None) -> tuple[Tensor, ...]:
    """The tensors of a `Norm`, none without layer normalisation; `affine` is that of the gates."""
    if norms is None or affine is None:
        return ()
    return Norm(affine.gain.flatten(), affine.shift.flatten(), norms.cell_gain, norms.cell_shift)


def across(states: Tensor, grads: Tensor) -> Tensor:
    """The gradient by a weight [inputs outputs] from all times at once."""
    return states.flatten(0, 1).t() @ grads.flatten(0, 1)


def used_up(*tensors: Tensor) -> None:
    """Their memory is written over on the way back: a second pass is refused by torch.

    A second derivative is refused here; torch's own mark would leave the second-order term out in silence.
    """
    if torch.is_grad_enabled():
        raise UserError(
            "the fused form of an LSTM or HyperLSTM has no second derivative; set machine.fused=false"
        )
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
