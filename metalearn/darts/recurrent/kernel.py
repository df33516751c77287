"""The nodes of the recurrent supernet by a small C kernel that the system's compiler builds on first use."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from metalearn.darts.recurrent.nodes import Nodes
from metalearn.kernels import build

SOURCE = Path(__file__).with_name("mixing.c")


class CompiledNodes(Nodes):
    """On the CPU, one pass over memory for each node; single-threaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def first_forward(
        self,
        product: Tensor,
        hidden: Tensor,
        states: Tensor,
        masked: Tensor,
        mask: Tensor,
        statistics: Tensor,
    ) -> None:
        tensors = product, hidden, states, masked, mask, statistics
        self.library.first_forward(*_pointers(*tensors), *_sizes(*hidden.shape))

    def first_backward(
        self,
        product: Tensor,
        hidden: Tensor,
        states: Tensor,
        statistics: Tensor,
        grads: Tensor,
        grad_hidden: Tensor,
    ) -> None:
        tensors = product, hidden, states, statistics, grads, grad_hidden, torch.empty_like(statistics)
        self.library.first_backward(*_pointers(*tensors), *_sizes(*hidden.shape))

    def node_forward(
        self,
        product: Tensor,
        shares: Tensor,
        states: Tensor,
        masked: Tensor,
        mask: Tensor,
        statistics: Tensor,
    ) -> None:
        tensors = product, shares, states, masked, mask, statistics
        self.library.node_forward(*_pointers(*tensors), *_sizes(len(shares), *mask.shape))

    def node_backward(
        self,
        product: Tensor,
        shares: Tensor,
        states: Tensor,
        statistics: Tensor,
        grads: Tensor,
        grad_shares: Tensor,
    ) -> None:
        tensors = product, shares, states, statistics, grads, grad_shares, torch.empty_like(statistics)
        self.library.node_backward(*_pointers(*tensors), *_sizes(len(shares), *states.shape[1:]))


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernel for one type of numbers; None where it cannot be built."""
    return build(dtype, SOURCE).library


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _sizes(*sizes: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(size) for size in sizes]
