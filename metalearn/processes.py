"""The processes that share one run: a meta-batch is split over them, hypergradients are averaged."""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from metalearn.tree import Tree

Item = TypeVar("Item")


class Processes:
    """This process among the `size` of a run, as torchrun starts them; one alone without it.

    Gradients from `torch.autograd.grad` are not synchronised by DistributedDataParallel, so they are averaged
    here, explicitly.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def from_environment(cls, device: torch.device) -> "Processes":
        """Join the others where torchrun has set RANK and WORLD_SIZE: nccl on CUDA, gloo else."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), size)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a meta-batch; the parts have equal lengths (see `maml`, which checks)."""
        return items[self.rank :: self.size]

    def average(self, tree: Tree) -> Tree:
        """The mean over processes, leaf by leaf, in one message for each type of number."""
        if self.size == 1:
            return tree
        averaged = {}
        for dtype in {leaf.dtype for leaf in tree.values()}:
            part = {key: leaf for key, leaf in tree.items() if leaf.dtype == dtype}
            flat = torch.cat([leaf.detach().reshape(-1) for leaf in part.values()])
            dist.all_reduce(flat)
            pieces = (flat / self.size).split([leaf.numel() for leaf in part.values()])
            averaged |= {
                key: piece.view(leaf.shape) for (key, leaf), piece in zip(part.items(), pieces, strict=True)
            }
        return {key: averaged[key] for key in tree}
