"""The processes that share one run: a meta-batch is split over them, hypergradients are averaged."""

import atexit
import datetime
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metalearn.registry import UserError
from metalearn.tree import Tree

Item = TypeVar("Item")
ALIGNED = 16  # bytes: a tensor of any type may begin there


class PeerLost(UserError):  # noqa: N818
    """Another process of the run has died, or has not answered in time."""

    exit_code = 1
    state = "interrupted"


class Processes:
    """This process among the `size` of a run, as torchrun starts them; one alone without it.

    Process 0 leads: it writes, evaluates and decides when to stop; the others only take part in steps.
    Gradients from `torch.autograd.grad` are not synchronised by DistributedDataParallel, so they are averaged
    here, explicitly; a method does so before its step changes any state, so that a step that a lost process
    broke off can be taken again. Every exchange raises PeerLost.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._exit_code: int | None = None  # what to leave with at once, see `_leave`
        self._parent = os.getppid()

    @classmethod
    def from_environment(cls, device: torch.device, timeout: float) -> "Processes":
        """Join the others where torchrun has set RANK and WORLD_SIZE: by nccl on CUDA, by gloo else.

        `timeout` is how many seconds an exchange waits for the others.
        """
        if world_size() == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
        processes = cls(dist.get_rank(), dist.get_world_size())
        atexit.register(processes._leave)
        return processes

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a meta-batch. Raises UserError if it does not divide evenly."""
        if len(items) % self.size:
            raise UserError(
                f"{len(items)} tasks a meta-batch do not divide over {self.size} processes; choose a "
                "meta-batch that is a multiple of the processes (torchrun --nproc-per-node)"
            )
        return items[self.rank :: self.size]

    def average(self, tree: Tree) -> Tree:
        """The mean over processes, leaf by leaf, in one message for each type of number."""
        if self.size == 1:
            return tree
        averaged = {}
        for dtype in dict.fromkeys(leaf.dtype for leaf in tree.values()):
            part = {key: leaf for key, leaf in tree.items() if leaf.dtype == dtype}
            flat = torch.cat([leaf.detach().reshape(-1) for leaf in part.values()])
            self._exchange(lambda flat=flat: dist.all_reduce(flat))
            pieces = (flat / self.size).split([leaf.numel() for leaf in part.values()])
            averaged |= {
                key: piece.view(leaf.shape) for (key, leaf), piece in zip(part.items(), pieces, strict=True)
            }
        return {key: averaged[key] for key in tree}

    def gather(self, thing: Any) -> list[Any]:
        """What every process gives, in their order: nested dictionaries and lists of tensors and numbers.

        Shapes may differ between processes: they go ahead, then the bytes of all tensors in one message.
        """
        if self.size == 1:
            return [thing]
        tensors: list[Tensor] = []
        own = _outline(thing, tensors), [(tuple(leaf.shape), leaf.dtype) for leaf in tensors]
        heads: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(heads, own))
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        longest = max(sum(_room(*head) for head in specs) for _, specs in heads)
        sent = torch.zeros(longest, dtype=torch.uint8, device=device)
        place = 0
        for leaf in tensors:
            sent[place : place + leaf.nbytes] = leaf.detach().contiguous().view(-1).view(torch.uint8)
            place += _room(tuple(leaf.shape), leaf.dtype)
        received = [torch.empty_like(sent) for _ in range(self.size)]
        if longest:
            self._exchange(lambda: dist.all_gather(received, sent))
        whole = zip(heads, received, strict=True)
        return [_filled(outline, _cut(data, specs)) for (outline, specs), data in whole]

    def from_leader(self, thing: Any = None) -> Any:
        """What process 0 gives, plain containers of tensors and numbers, in every process."""
        if self.size == 1:
            return thing
        box = [thing]
        self._exchange(lambda: dist.broadcast_object_list(box, src=0))
        return box[0]

    def _exchange(self, action: Callable[[], object]) -> None:
        if os.getppid() != self._parent:
            self._exit_code = PeerLost.exit_code
            raise PeerLost("torchrun, which started this process, is gone")
        try:
            action()
        except RuntimeError as error:
            self._exit_code = PeerLost.exit_code
            reason = re.sub(
                r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]
            )  # without torch's own source line
            raise PeerLost(f"another process of this run is gone or does not answer ({reason})") from error

    def end(self) -> None:
        """No more exchanges: every process calls it after the last step."""
        if dist.is_initialized():
            dist.destroy_process_group()
        if not self.leads:
            self._exit_code = 0

    def _leave(self) -> None:
        """At exit. Where a peer may be gone torch's threads can abort the process: it ends without them."""
        if self._exit_code is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._exit_code)
        elif dist.is_initialized():
            dist.destroy_process_group()


class _Number(NamedTuple):
    """Stands for a tensor that is sent apart from where it belongs."""

    number: int


def _outline(thing: Any, tensors: list[Tensor]) -> Any:
    """`thing` with a `_Number` for each tensor, which is appended to `tensors`."""
    if isinstance(thing, Tensor):
        tensors.append(thing)
        return _Number(len(tensors) - 1)
    if isinstance(thing, dict):
        return {key: _outline(part, tensors) for key, part in thing.items()}
    return [_outline(part, tensors) for part in thing] if isinstance(thing, list) else thing


def _filled(outline: Any, tensors: list[Tensor]) -> Any:
    """What `outline` was made from."""
    if isinstance(outline, _Number):
        return tensors[outline.number]
    if isinstance(outline, dict):
        return {key: _filled(part, tensors) for key, part in outline.items()}
    return [_filled(part, tensors) for part in outline] if isinstance(outline, list) else outline


def _cut(data: Tensor, specs: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> list[Tensor]:
    """The tensors whose bytes are in `data`, one after the other."""
    tensors, place = [], 0
    for shape, dtype in specs:
        flat = data[place : place + math.prod(shape) * dtype.itemsize].clone().view(dtype)
        tensors.append(flat.view(shape))
        place += _room(shape, dtype)
    return tensors


def _room(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor and of the gap behind it."""
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED


def world_size() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
