"""A tiny image task and a tiny supernet, for tests in float64."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from metalearn.config import MachineOptions
from metalearn.darts.config import SupernetOptions
from metalearn.darts.supernet import Supernet
from metalearn.machine import Machine
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec


class TinyImages(Task):
    """Random images [1 8 8] of three classes; each split has its own eight."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.spec = TaskSpec("tiny", "classification", (1, 8, 8), 3, {}, "error", "", "", "", "")

    def batch(self, split: Split, index: int) -> Batch:
        rng = generator(split, index % 2)
        x = torch.randn(8, 1, 8, 8, generator=rng, dtype=torch.float64).to(self.dtype)
        return Batch(x, torch.randint(3, (8,), generator=rng), (split, index))

    def batches(self, split: Split) -> int:  # noqa: ARG002
        return 2

    def sweep(self, split: Split) -> Iterator[Batch]:
        yield from (self.batch(split, index) for index in range(2))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return torch.nn.functional.cross_entropy(output, batch.y)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        error = 100 * (output.argmax(1) != batch.y).to(output.dtype).mean()
        return {"loss": self.loss(output, batch).detach(), "error": error}


@pytest.fixture
def images() -> Callable[[torch.dtype], TinyImages]:
    return TinyImages


@pytest.fixture
def tiny_supernet() -> Callable[..., Supernet]:
    """Builds the same three cells of two nodes and two channels, or of other options, at each call."""

    def build(dtype: torch.dtype, **changes: int | str) -> Supernet:
        spec = TinyImages(dtype).spec
        with seeded("tiny supernet"):
            options = SupernetOptions("darts_supernet", 3, 2, 3, 2, "darts", 1)
            return Supernet(dataclasses.replace(options, **changes), spec).to(dtype)  # type: ignore[arg-type]

    return build


@pytest.fixture
def machine() -> Machine:
    return Machine(MachineOptions("cpu", "cpu", "fp32", False, True, False, 0, 60))
