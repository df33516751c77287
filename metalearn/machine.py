"""Where tensors live and how functions run: device, precision, compilation, determinism, threads."""

import contextlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalearn.config import MachineOptions
from metalearn.processes import Processes
from metalearn.registry import UserError

TORCHS_THREADS = torch.get_num_threads()  # before any machine was made


class Machine:
    """A device with a precision. `device=auto` takes CUDA where there is one.

    Precision: fp32 (full float32 products), tf32 (CUDA tensor cores on float32; the CPU knows none and
    computes as in fp32), bf16 (autocast; weights and optimizers stay float32). The settings are torch's
    own and hold for the process: the last machine made decides. A guest, in a process of the user's own,
    leaves them as they are and joins no other processes.
    """

    def __init__(self, options: MachineOptions, guest: bool = False) -> None:
        available = torch.cuda.is_available()
        if options.device == "cuda" and not available:
            raise UserError(
                "machine.device: got cuda, but torch sees no CUDA device; use machine=cpu or machine=auto"
            )
        self.options = options
        self.device = torch.device("cuda" if available and options.device != "cpu" else "cpu")
        self.processes = Processes() if guest else Processes.from_environment(self.device, options.timeout)
        if not guest:
            _settle(options)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The block in which matrix products run in bf16, or nothing in full precision."""
        if self.options.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` through torch.compile if `machine.compile` is on, else itself.

        Only for parts that are differentiated once: torch.compile has no double backward.
        """
        return torch.compile(function) if self.options.compile else function

    def put(self, tensor: Tensor) -> Tensor:
        """`tensor` on the device."""
        return tensor.to(self.device)


def _settle(options: MachineOptions) -> None:
    """Give torch the settings of a machine."""
    torch.set_num_threads(options.threads or TORCHS_THREADS)
    _allow_tf32(options.precision == "tf32")
    if options.deterministic:
        # read by cuBLAS when its first product comes; without it torch refuses products on CUDA
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != options.deterministic:
        torch.use_deterministic_algorithms(options.deterministic)  # imports torch's compiler: three seconds
    torch.backends.cudnn.deterministic = options.deterministic
    torch.backends.cudnn.benchmark = not options.deterministic


def _allow_tf32(allow: bool) -> None:
    """By the older of torch's two interfaces: its compiler reads that one and fails if they are mixed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")
        torch.backends.cuda.matmul.allow_tf32 = allow
        torch.backends.cudnn.allow_tf32 = allow


def full(tensor: Tensor) -> Tensor:
    """Autocast's bf16 as float32: losses are summed in full precision."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
