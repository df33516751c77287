"""Meta-batches of small tasks: a few examples to adapt on, others to be scored on."""

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from metalearn.rng import generator
from metalearn.task import Batch, Split, Task
from tasks.config import EpisodeOptions


class EpisodeTask(Task):
    """A distribution of tasks, given by how some of them are drawn.

    `batch` draws fresh tasks by (seed, name, split, index). `sweep` takes the same `evaluated` tasks in every
    run, each drawn by (name, split, its number) without the run's seed: seeds, methods and sizes of batches
    are compared on the same tasks.
    """

    def __init__(self, options: EpisodeOptions, seed: int, device: torch.device) -> None:
        self.options, self.seed, self.device = options, seed, device

    @abstractmethod
    def draw(self, split: Split, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """x [task example ...] and y [task example ...] of `count` tasks, on the device, support first."""

    def batch(self, split: Split, index: int) -> Batch:
        key = (self.seed, self.options.name, split, index)
        return Batch(*self.draw(split, self.options.batch, generator(*key)), key)

    def batches(self, split: Split) -> int:  # noqa: ARG002
        """How many meta-batches draw as many tasks as a sweep has: there is no end to them."""
        return math.ceil(self.options.evaluated / self.options.batch)

    def sweep(self, split: Split) -> Iterator[Batch]:
        name, size, end = self.options.name, self.options.evaluation_batch, self.options.evaluated
        for index, start in enumerate(range(0, end, size)):
            numbers = range(start, min(start + size, end))
            drawn = [self.draw(split, 1, generator(name, split, "sweep", number)) for number in numbers]
            x, y = (torch.cat(part) for part in zip(*drawn, strict=True))
            yield Batch(x, y, (name, split, "sweep", index))
