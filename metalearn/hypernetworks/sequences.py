"""Sequences of different lengths: masks, and the packed form that torch's recurrent modules take."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from metalearn.registry import UserError

State = tuple[Tensor, ...]


class Padded(NamedTuple):
    """A packed sequence filled up with zeros, its rows as they lie in it: the longest first."""

    x: Shaped[Tensor, "time batch ..."]
    present: Bool[Tensor, "time batch 1"]
    lengths: Int[Tensor, " batch"]  # on the host


def presence(lengths: Int[Tensor, " batch"], times: int) -> Bool[Tensor, "time batch 1"]:
    """Where rows of these lengths have an input: what recurrent stacks call `present`.

    Raises UserError for a length that is not from 1 to `times`.
    """
    low, high = (int(limit) for limit in torch.aminmax(lengths))  # on the host: a mask must not cut silently
    if not 1 <= low <= high <= times:
        raise UserError(
            f"lengths: got {low} to {high}, must be from 1 to {times}, the times that there are; leave out "
            "empty rows, or give more times"
        )
    return (torch.arange(times, device=lengths.device)[:, None] < lengths).unsqueeze(-1)


def unpack(packed: PackedSequence) -> Padded:
    """The inverse of `pack`."""
    x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))
    return Padded(x, presence(lengths, len(x)).to(x.device), lengths)


def pack(outputs: Shaped[Tensor, "time batch ..."], padded: Padded, like: PackedSequence) -> PackedSequence:
    """`outputs` of a padded sequence in the order of the packed one that it came from."""
    data = pack_padded_sequence(outputs, padded.lengths).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def reorder(state: State, order: Int[Tensor, " batch"] | None) -> State:
    """Each [layers batch units] with its rows in another order; None: as they are."""
    return state if order is None else tuple(part.index_select(1, order) for part in state)
