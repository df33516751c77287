"""What recurrent cells share: gates, layer normalisation, starts, and stacking in layers.

Everything is written in elementary operations, so that second derivatives and `vmap` work. Gates come in
the paper's order i, g, f, o; `g` is the candidate. Weights are kept as [inputs outputs], so that a one-hot
input is a look-up of rows.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from metalearn.hypernetworks.sequences import State, pack, reorder, unpack
from metalearn.registry import UserError

GATES = 4
FORGET = 2  # the forget gate's place
EPSILON = 1e-3  # inside layer normalisation's square root, as the authors' supercell.py

Present = Bool[Tensor, "time batch 1"] | None  # where rows of different lengths have an input


class Affine(NamedTuple):
    """Gain and shift after a normalisation; they broadcast over the batch."""

    gain: Tensor
    shift: Tensor


class Norms(nn.Module):
    """Layer normalisation of a cell's four gates, each over its own units, and of its cell state."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.gate_gain = nn.Parameter(torch.ones(GATES, 1, units))
        self.gate_shift = nn.Parameter(torch.zeros(GATES, 1, units))
        self.cell_gain = nn.Parameter(torch.ones(units))
        self.cell_shift = nn.Parameter(torch.zeros(units))

    @property
    def cell(self) -> Affine:
        return Affine(self.cell_gain, self.cell_shift)


class Cell(nn.Module, ABC):
    """One layer; it reads a sequence in one call, so that all that can be hoisted out of the loop is.

    Its state is the tensors that it hands on, each [batch units], the output h first.
    """

    sizes: tuple[int, ...]  # units of each tensor of the state

    @abstractmethod
    def scan(
        self,
        x: Shaped[Tensor, "time batch ..."],
        state: State,
        scale: Tensor | None = None,
        present: Present = None,
        fused: bool = False,
    ) -> tuple[Float[Tensor, "time batch units"], State]:
        """Outputs at each time and the last state.

        `x` is [time batch inputs] of numbers, or [time batch] int64 for one-hot symbols. `scale`
        [time batch 1] multiplies the inputs: that is what dropout does to one-hot symbols. Where a row is
        not `present`, its state stays as it is. `fused` allows kernels that are differentiated once.
        """

    def forward(self, x: Shaped[Tensor, "batch ..."], state: State) -> State:
        """One step."""
        return self.scan(x[None], state)[1]


class Stack(nn.Module, ABC):
    """Cells in layers, called as `torch.nn.LSTM` is; each tensor of the state is [layers batch units].

    `dropout` is the share of what a layer hands to the next one that training drops. `fused` allows kernels
    that are differentiated once.
    """

    fused: bool = False

    def __init__(self, cells: Sequence[Cell], batch_first: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.batch_first = batch_first
        self.dropout = dropout

    def forward(
        self,
        x: Shaped[Tensor, "time batch ..."] | PackedSequence,
        state: State | None = None,
        scale: Tensor | None = None,
        present: Present = None,
    ) -> tuple[Float[Tensor, "time batch units"] | PackedSequence, State]:
        """Outputs of the last layer at each time, and the last state of all layers.

        `x`, `scale` and `present` as in `Cell.scan`; with `batch_first`, batch and time trade places in all
        and in the outputs. Where a row is not present, its output is 0; its last state is that of its last
        input. One sequence without a batch ([time inputs], or [time] of symbols) gives outputs and state
        without one, and a PackedSequence a PackedSequence, the state's rows in the order before packing.
        """
        if isinstance(x, PackedSequence):
            if scale is not None or present is not None:
                raise UserError("a PackedSequence knows where its rows end; leave out scale and present")
            return self._read_packed(x, state)
        if x.dim() == (2 if x.is_floating_point() else 1):
            return self._read_one(x, state, scale, present)
        if not self.batch_first:
            return self._read(x, state, scale, present)
        scale, present = (None if given is None else given.transpose(0, 1) for given in (scale, present))
        outputs, last = self._read(x.transpose(0, 1), state, scale, present)
        return outputs.transpose(0, 1), last

    def _read(
        self, x: Tensor, state: State | None, scale: Tensor | None = None, present: Present = None
    ) -> tuple[Tensor, State]:
        """`forward` with time in front."""
        state = self._checked(state, x.shape[1])
        lasts = []
        starts = zip(*(part.unbind(0) for part in state), strict=True)
        for index, (cell, start) in enumerate(zip(self.cells, starts, strict=True)):
            assert isinstance(cell, Cell)
            if index and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x, last = cell.scan(x, start, scale, present, self.fused)
            scale = None
            lasts.append(last)
        together = tuple(torch.stack(parts) for parts in zip(*lasts, strict=True))
        return x if present is None else x.masked_fill(~present, 0.0), together

    def _read_one(
        self, x: Tensor, state: State | None, scale: Tensor | None, present: Present
    ) -> tuple[Tensor, State]:
        """`forward` of one sequence without a batch."""
        state = None if state is None else tuple(part.unsqueeze(1) for part in state)
        scale, present = (None if given is None else given.unsqueeze(1) for given in (scale, present))
        outputs, last = self._read(x.unsqueeze(1), state, scale, present)
        return outputs.squeeze(1), tuple(part.squeeze(1) for part in last)

    def _read_packed(self, x: PackedSequence, state: State | None) -> tuple[PackedSequence, State]:
        padded = unpack(x)
        state = None if state is None else reorder(state, x.sorted_indices)
        outputs, last = self._read(padded.x, state, present=padded.present)
        return pack(outputs, padded, x), reorder(last, x.unsorted_indices)

    def _checked(self, state: State | None, batch: int) -> State:
        """The state, zeros if None. Raises UserError for one of other shapes."""
        if state is None:
            return self.initial_state(batch)
        found, allowed = [tuple(part.shape) for part in state], self._shapes(batch)
        if found != allowed:
            raise UserError(
                f"state: got tensors of shapes {found}, must be {allowed}: one for each layer and row; "
                "leave it out to start from zeros"
            )
        return state

    def initial_state(self, batch: int) -> State:
        """Zeros."""
        like = next(self.parameters())
        return tuple(like.new_zeros(shape) for shape in self._shapes(batch))

    def _shapes(self, batch: int) -> list[tuple[int, ...]]:
        first = self.cells[0]
        assert isinstance(first, Cell)
        return [(len(self.cells), batch, units) for units in first.sizes]


def hold(present: Tensor | None, new: State, old: State) -> State:
    """The new state where a row is present, the old one where it has ended."""
    if present is None:
        return new
    return tuple(torch.where(present, after, before) for after, before in zip(new, old, strict=True))


def each(present: Present, times: int) -> Sequence[Tensor | None]:
    """`present` at each time."""
    return [None] * times if present is None else present.unbind(0)


def project(x: Tensor, weight: Float[Tensor, "inputs outputs"], scale: Tensor | None) -> Tensor:
    """scale * (x W) for all times at once; symbols are looked up, which is what one-hot rows times W is."""
    projected = x @ weight if x.is_floating_point() else F.embedding(x, weight)
    return projected if scale is None else projected * scale


def by_gate(x: Float[Tensor, "... batch gates*units"]) -> Float[Tensor, "... gates batch units"]:
    """A view with the gates in front."""
    return x.unflatten(-1, (GATES, -1)).transpose(-2, -3)


def normalise(x: Tensor, affine: Affine | None) -> Tensor:
    """Zero mean and unit biased variance over the units, then gain and shift; None: `x` as it is."""
    if affine is None:
        return x
    return torch.addcmul(affine.shift, F.layer_norm(x, x.shape[-1:], eps=EPSILON), affine.gain)


def gate_constants(
    bias: Float[Tensor, "gates*units"], norms: Norms | None, forget_bias: float
) -> tuple[Tensor, Affine | None]:
    """Bias and affine map of the gates, the forget bias added to whichever comes last before the sigmoid."""
    constant = torch.zeros(GATES, 1, bias.numel() // GATES, dtype=bias.dtype, device=bias.device)
    constant[FORGET] = forget_bias
    if norms is None:
        return bias + constant.flatten(), None
    return bias, Affine(norms.gate_gain, norms.gate_shift + constant)


def advance(
    gates: Float[Tensor, "gates batch units"], cell: Tensor, norms: Norms | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """c' = f c + i dropout(tanh g), h' = o tanh(LN(c')), from gates before their sigmoids (eq. 9 and 13)."""
    write, candidate, keep, read = gates.unbind(0)
    candidate = torch.tanh(candidate)
    if mask is not None:
        candidate = candidate * mask
    cell = torch.addcmul(torch.sigmoid(keep) * cell, torch.sigmoid(write), candidate)
    seen = normalise(cell, None if norms is None else norms.cell)
    return torch.sigmoid(read) * torch.tanh(seen), cell


def dropout_masks(times: int, like: Float[Tensor, "batch units"], keep: float) -> Sequence[Tensor | None]:
    """One mask a step, scaled by 1/keep; drawn for the whole sequence at once."""
    if keep == 1.0:
        return [None] * times
    return F.dropout(like.new_ones(times, *like.shape), 1.0 - keep).unbind(0)


def orthogonal_blocks(weight: Float[Tensor, "inputs gates*units"]) -> None:
    """Draw each gate's block with orthonormal rows or columns, whichever are fewer."""
    for block in weight.data.chunk(GATES, dim=1):
        block.copy_(nn.init.orthogonal_(torch.empty_like(block)))


def start_weights(weight_x: Tensor, weight_h: Tensor, initial: str) -> None:
    """Recurrent weights orthogonal gate by gate; input weights too, or Glorot uniform ("code")."""
    orthogonal_blocks(weight_h)
    (glorot_uniform if initial == "code" else orthogonal_blocks)(weight_x)


def glorot_uniform(weight: Float[Tensor, "inputs outputs"]) -> None:
    """TensorFlow's default start."""
    limit = math.sqrt(6.0 / sum(weight.shape))
    nn.init.uniform_(weight, -limit, limit)
