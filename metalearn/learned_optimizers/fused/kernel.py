"""The C kernel of the stack, called on tensors."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.kernels import build

SOURCE = Path(__file__).with_name("stack.c")
PARTS = 16  # whose gradients are summed apart, at most; fixed, so that bits do not depend on threads
BLOCKS = 8  # of coordinates in a part, at least


class Stack(NamedTuple):
    """Sizes of a stack. `p` > 0: the input is a gradient, of which log-sign features are made."""

    inputs: int
    layers: int
    hidden: int
    forget_bias: float
    p: float


class Given(NamedTuple):
    """What a step is made from: states are h and c of layer 0, of layer 1 ... [coordinates hidden]."""

    seen: Float[Tensor, "steps coordinates *inputs"]
    states: Sequence[Tensor]
    weights: Sequence[Tensor]  # a weight and a bias of each layer, then those of the linear map


class Wanted(NamedTuple):
    """Which gradients a way back is to give."""

    seen: bool
    states: bool


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("inputs", "layers", "hidden", "coordinates", "steps")),
        ("forget_bias", ctypes.c_double),
        ("p", ctypes.c_double),
    ]


class _Way(ctypes.Structure):
    _names = ("given", "weights", "before", "grad_output", "grad_after", "grad_given", "grad_before")
    _fields_ = [(name, ctypes.c_void_p) for name in (*_names, "grad_weights")]


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernel for one type of numbers; None where it cannot be built."""
    return build(dtype, SOURCE).library


def forward(stack: Stack, given: Given) -> tuple[Float[Tensor, " coordinates"], list[Tensor]]:
    """The output of one step and the states after it."""
    seen, before, weights = given.seen.contiguous(), _contiguous(given.states), _contiguous(given.weights)
    output, after = seen.new_empty(seen.shape[1]), [torch.empty_like(state) for state in before]
    found = library(seen.dtype)
    assert found is not None
    found.stack_forward(
        ctypes.byref(_shape(stack, seen)),
        ctypes.c_void_p(seen.data_ptr()),
        _list(weights),
        _list(before),
        ctypes.c_void_p(output.data_ptr()),
        _list(after),
        ctypes.c_long(min(_parts(found, seen), torch.get_num_threads())),
    )
    return output, after


def backward(
    stack: Stack,
    given: Given,
    grad_output: Float[Tensor, "steps coordinates"] | None,
    grad_after: Sequence[Tensor | None],
    wanted: Wanted,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Gradients by what was seen, by the states and by the weights, from those by outputs and last states.

    The steps are run again from the states before the first: nothing else need be kept.
    """
    seen, before, weights = given.seen.contiguous(), _contiguous(given.states), _contiguous(given.weights)
    by_output, by_after = _contiguous([grad_output])[0], _contiguous(grad_after)
    by_seen = torch.empty_like(seen) if wanted.seen else None
    by_states = [torch.empty_like(state) for state in before] if wanted.states else []
    by_weights = [torch.zeros_like(weight) for weight in weights]
    found = library(seen.dtype)
    assert found is not None
    parts = min(PARTS, _parts(found, seen))
    lists = [_list(weights), _list(before), _list(by_after), _list(by_states), _list(by_weights)]
    way = _Way(
        given=seen.data_ptr(),
        weights=ctypes.addressof(lists[0]),
        before=ctypes.addressof(lists[1]),
        grad_output=_address(by_output),
        grad_after=ctypes.addressof(lists[2]),
        grad_given=_address(by_seen),
        grad_before=ctypes.addressof(lists[3]) if by_states else None,
        grad_weights=ctypes.addressof(lists[4]),
    )
    threads = min(parts, torch.get_num_threads())
    found.stack_backward(
        ctypes.byref(_shape(stack, seen)), ctypes.byref(way), ctypes.c_long(parts), ctypes.c_long(threads)
    )
    return by_seen, by_states, by_weights


def _parts(library: ctypes.CDLL, seen: Tensor) -> int:
    """How many parts of enough blocks there are."""
    blocks = -(-seen.shape[1] // library.stack_block())
    return max(1, blocks // BLOCKS)


def _shape(stack: Stack, seen: Tensor) -> _Shape:
    steps, coordinates = seen.shape[:2]
    return _Shape(stack.inputs, stack.layers, stack.hidden, coordinates, steps, stack.forget_bias, stack.p)


def _contiguous(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]  # type: ignore[misc]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _list(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(_address, tensors))
