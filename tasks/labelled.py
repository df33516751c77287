"""What all classification of labelled examples shares: splits, epochs, loss."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Split, Task
from tasks.config import ExampleOptions


class Labelled(Task):
    """Examples by row number, `training` of them before `test` of them, each with its class.

    Splits follow the order of the rows and never the run's seed: `test` is the official test set, `valid`
    the last `valid_size` training examples, `train` the rest, whose first and second half are `search_train`
    and `search_valid` (as the code of DARTS halves CIFAR-10).

    An epoch of `batch` is a fresh permutation by (seed, split, epoch) in full batches; the remainder is left
    out, or with `drop_last` false it is a last, shorter batch.
    """

    def __init__(
        self, options: ExampleOptions, seed: int, training: int, test: int, device: torch.device
    ) -> None:
        self.options, self.seed = options, seed
        self.ranges = _ranges(options, training, test)
        self._order_on = device  # where row numbers are kept
        self._orders: dict[str, tuple[int, Tensor]] = {}  # the current epoch's, by split
        self.batches("train")  # refuses a batch that is too large before anything runs

    @abstractmethod
    def batch(self, split: Split, index: int) -> Batch: ...

    def batches(self, split: Split) -> int:
        rows, size = len(self._rows_of(split)), self.options.batch
        if size > rows:
            raise UserError(
                f"task.batch: got {size}, must be at most {rows}, the examples of {self.options.name}'s "
                f"split {split}"
            )
        return rows // size if self.options.drop_last else math.ceil(rows / size)

    def rows(self, split: Split, index: int) -> Int64[Tensor, " batch"]:
        """Row numbers of batch `index`."""
        size, (epoch, place) = self.options.batch, divmod(index, self.batches(split))
        return self._epoch(split, epoch)[place * size : (place + 1) * size]

    def _epoch(self, split: Split, epoch: int) -> Int64[Tensor, " example"]:
        """Row numbers in the order of an epoch; a pure function, the last result is kept."""
        if split not in self._orders or self._orders[split][0] != epoch:
            rows = self.ranges[split]
            order = torch.randperm(len(rows), generator=generator(self.seed, "order", split, epoch))
            self._orders[split] = epoch, (order + rows.start).to(self._order_on)
        return self._orders[split][1]

    def slices(self, split: Split) -> list[slice]:
        """The rows of each batch of a sweep: every example once, in order."""
        rows, size = self._rows_of(split), self.options.evaluation_batch
        return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]

    def _rows_of(self, split: Split) -> range:
        """The split's row numbers. Raises UserError if it has none."""
        if not len(self.ranges[split]):
            raise UserError(
                f"task {self.options.name}: split {split} is empty, for task.valid_size is "
                f"{self.options.valid_size}; raise it, or do not evaluate {split}"
            )
        return self.ranges[split]

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(output, batch.y)


def error(output: Tensor, y: Int64[Tensor, " batch"], best: int = 1) -> Float[Tensor, ""]:
    """Percent of examples whose class is not among the `best` highest scores."""
    if best == 1:
        return 100 * (output.argmax(-1) != y).float().mean()
    right = (output.topk(best, dim=-1).indices == y.unsqueeze(-1)).any(-1)
    return 100 * (~right).float().mean()


def _ranges(options: ExampleOptions, training: int, test: int) -> dict[str, range]:
    """Row numbers by split. Raises UserError if `valid_size` leaves too little."""
    train = training - options.valid_size
    if train < 2:
        raise UserError(
            f"task.valid_size: got {options.valid_size}, must be at most {training - 2}, for "
            f"{options.name} has {training} training examples"
        )
    half = math.ceil(train / 2)
    return {
        "train": range(train),
        "search_train": range(half),
        "search_valid": range(half, train),
        "valid": range(train, training),
        "test": range(training, training + test),
    }
