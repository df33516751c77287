"""The pointwise parts by a small C kernel that the system's compiler builds on first use."""

import ctypes
from pathlib import Path

from torch import Tensor

from metalearn.hypernetworks.fused.blocks import Blocks, EagerBlocks, Grads, Norm, Step
from metalearn.kernels import build

SOURCE = Path(__file__).with_name("cells.c")
WORK = 6  # units of scratch that cell_backward wants


class CompiledBlocks(Blocks):
    """On the CPU, a row at a time, so that its numbers stay in the cache; single-threaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def cell_forward(self, step: Step, norm: Norm | None) -> None:
        self.library.cell_forward(
            *_pointers(step.gates, step.before, step.after, step.hidden, step.mask, *_optional(norm)),
            *_pointers(step.statistics),
            *_sizes(*step.before.shape),
        )

    def cell_backward(self, step: Step, norm: Norm | None, grads: Grads) -> None:
        work = grads.hidden.new_empty(WORK, step.before.shape[1])
        self.library.cell_backward(
            *_pointers(step.gates, step.before, step.after, step.mask, *_optional(norm), step.statistics),
            *_pointers(grads.hidden, grads.cell),
            _rows(grads.gates),
            *_pointers(grads.norms, work),
            *_sizes(*step.before.shape, grads.gates.stride(0)),
        )

    def mix_forward(
        self, gates: Tensor, recurrent: Tensor, inputs: Tensor, made: Tensor, bias: Tensor
    ) -> None:
        self.library.mix_forward(
            *_pointers(gates),
            _rows(recurrent),
            *_pointers(inputs, made, bias),
            *_sizes(*made.shape[1:], recurrent.stride(0)),
        )

    def mix_backward(
        self, gates: Tensor, recurrent: Tensor, inputs: Tensor, made: Tensor, grad_bias: Tensor
    ) -> None:
        self.library.mix_backward(
            *_pointers(gates),
            _rows(recurrent),
            *_pointers(inputs, made, grad_bias),
            *_sizes(*made.shape[1:], recurrent.stride(0)),
        )


def blocks_for(tensor: Tensor) -> Blocks:
    """The kernel where it can be built, or torch's own operations."""
    library = build(tensor.dtype, SOURCE).library if tensor.device.type == "cpu" else None
    return EagerBlocks() if library is None else CompiledBlocks(library)


def _optional(norm: Norm | None) -> tuple[Tensor | None, ...]:
    return norm or (None,) * len(Norm._fields)


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _rows(tensor: Tensor) -> ctypes.c_void_p:
    """A tensor whose rows may stand apart."""
    assert tensor.stride(1) == 1
    return ctypes.c_void_p(tensor.data_ptr())


def _sizes(*sizes: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(size) for size in sizes]
