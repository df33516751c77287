"""The nodes of the recurrent supernet by a small C kernel that the system's compiler builds on first use."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from metalearn.darts.recurrent.nodes import Nodes

SOURCE = Path(__file__).with_name("mixing.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp-simd -shared -fPIC"
REALS = {  # by the type of the tensors
    torch.float32: "-DREAL=float -DIS_DOUBLE=0 -DFABS=fabsf -DSQRT=sqrtf",
    torch.float64: "-DREAL=double -DIS_DOUBLE=1 -DFABS=fabs -DSQRT=sqrt",
}


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


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernel for one type of numbers; None where there is no compiler or it fails."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), *COMPILERS))), None)
    if compiler is None or dtype not in REALS:
        return None
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "mixing.so"
        command = [compiler, *shlex.split(f"{FLAGS} {REALS[dtype]}"), str(SOURCE), "-o", str(built), "-lm"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
        return ctypes.CDLL(str(built))  # stays in memory when its file goes


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _sizes(*sizes: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(size) for size in sizes]
