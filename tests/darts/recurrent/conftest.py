"""A tiny text and a tiny recurrent supernet, for tests in float64."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.config import MachineOptions
from metalearn.darts.config import RecurrentSupernetOptions
from metalearn.darts.recurrent.supernet import RecurrentSupernet
from metalearn.machine import Machine
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec

SPEC = TaskSpec("tiny text", "language_model", (), 7, {}, "perplexity", "", "", "", "")


class TinyText(Task):
    """Random texts of seven symbols in five rows, four a batch; a pass of `train` is three batches."""

    spec = SPEC

    def batch(self, split: Split, index: int) -> Batch:
        rng = generator(split, index % self.batches(split))
        symbols = torch.randint(7, (5, 5), generator=rng)
        return Batch(symbols[:, :-1], symbols[:, 1:], (split, index))

    def batches(self, split: Split) -> int:
        return 3 if split == "train" else 2

    def sweep(self, split: Split) -> Iterator[Batch]:
        yield from (self.batch(split, index) for index in range(2))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return torch.nn.functional.cross_entropy(output.flatten(0, 1), batch.y.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


@pytest.fixture
def text() -> TinyText:
    return TinyText()


@pytest.fixture(scope="session")
def supernet_options() -> RecurrentSupernetOptions:
    """The paper's dropouts at six units and three nodes; weights large enough to matter."""
    options = compose(["method=darts", "network=darts_recurrent_supernet", "task=ptb_word"]).network
    return dataclasses.replace(options, units=6, nodes=3, start=0.7)


@pytest.fixture
def recurrent_supernet(supernet_options) -> Callable[..., RecurrentSupernet]:
    """Builds the same supernet at each call, with options changed."""

    def build(dtype: torch.dtype = torch.float64, **changes) -> RecurrentSupernet:
        with seeded("tiny recurrent supernet"):
            return RecurrentSupernet(dataclasses.replace(supernet_options, **changes), SPEC).to(dtype)

    return build


@pytest.fixture
def machine() -> Machine:
    return Machine(MachineOptions("cpu", "cpu", "fp32", False, True, False, 0, 60))
