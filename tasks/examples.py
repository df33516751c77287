"""Classification of labelled examples, which live on the device as one tensor."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.rng import Key, generator
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from tasks import augment
from tasks.config import ExampleOptions, ImageOptions


class Data(NamedTuple):
    """A data set as its reader gives it."""

    x: Tensor  # [example channel height width] uint8, or [example feature] float
    y: Int64[Tensor, " example"]
    test: int  # how many examples at the end are the test set
    largest: float  # x / largest is what a network sees before normalisation
    mean: tuple[float, ...]  # of x / largest, by channel
    deviation: tuple[float, ...]
    source: str
    licence: str
    provenance: str
    comparable: bool = True


class Examples(Task):
    """Labelled examples, images or vectors.

    Splits follow the order of the files and never the run's seed: `test` is the official test set, `valid`
    the last `valid_size` training examples, `train` the rest, whose first and second half are `search_train`
    and `search_valid` (as the code of DARTS halves CIFAR-10). Embedded sets have no official test set: their
    readers put the examples into a fixed shuffled order, the last of which are the test set.

    An epoch of `batch` is a fresh permutation by (seed, split, epoch) in full batches, the remainder is left
    out; augmentation is drawn by (seed, name, split, index). `sweep` takes every example once, in file order.
    """

    def __init__(
        self, options: ExampleOptions, seed: int, data_dir: Path, download: bool, device: torch.device
    ) -> None:
        from tasks.readers import read

        data = read(options.name, data_dir, download)
        self.options, self.seed, self.device = options, seed, device
        self.ranges = _ranges(options, data)
        self.x, self.y, self.largest = data.x.to(device), data.y.to(device), data.largest
        shape = (1, -1) + (1,) * (data.x.dim() - 2)
        self.mean = torch.tensor(data.mean, device=device).view(shape)
        self.deviation = torch.tensor(data.deviation, device=device).view(shape)
        self.order: dict[str, tuple[int, Tensor]] = {}  # the current epoch's, by split
        self.spec = TaskSpec(
            name=options.name,
            kind="classification",
            input_shape=tuple(data.x.shape[1:]),
            outputs=int(data.y.max()) + 1,
            sizes={name: len(rows) for name, rows in self.ranges.items()},
            metric="error",
            source=data.source,
            licence=data.licence,
            provenance=data.provenance,
            digest=digest(data.x, data.y),
            comparable=data.comparable,
        )
        self.batches("train")  # refuses a batch that is too large before anything runs

    def batch(self, split: Split, index: int) -> Batch:
        size, (epoch, place) = self.options.batch, divmod(index, self.batches(split))
        rows = self._epoch(split, epoch)[place * size : (place + 1) * size]
        key = (self.seed, self.options.name, split, index)
        return Batch(self._augmented(self.x[rows], key), self.y[rows], key)

    def _epoch(self, split: Split, epoch: int) -> Int64[Tensor, " example"]:
        """Row numbers in the order of an epoch; a pure function, the last result is kept."""
        if split not in self.order or self.order[split][0] != epoch:
            rows = self.ranges[split]
            order = torch.randperm(len(rows), generator=generator(self.seed, "order", split, epoch))
            self.order[split] = epoch, (order + rows.start).to(self.device)
        return self.order[split][1]

    def _augmented(self, x: Tensor, key: tuple[Key, ...]) -> Float[Tensor, "batch ..."]:
        """Crop and flip the raw image, so that padding is black, normalise, then cut out."""
        options = self.options
        if not isinstance(options, ImageOptions):
            return self._normalised(x)
        rng = generator(*key, "augment")
        if options.crop:
            x = augment.crop(x, options.crop, rng)
        if options.flip:
            x = augment.flip(x, rng)
        x = self._normalised(x)
        return augment.cutout(x, options.cutout, rng) if options.cutout else x

    def _normalised(self, x: Tensor) -> Float[Tensor, "batch ..."]:
        x = x.float() / self.largest
        plain = isinstance(self.options, ImageOptions) and not self.options.normalise
        return x if plain else (x - self.mean) / self.deviation

    def batches(self, split: Split) -> int:
        count = len(self._range(split)) // self.options.batch
        if not count:
            raise UserError(
                f"task.batch: got {self.options.batch}, must be at most {len(self.ranges[split])}, "
                f"the examples of {self.options.name}'s split {split}"
            )
        return count

    def sweep(self, split: Split) -> Iterator[Batch]:
        rows, size = self._range(split), self.options.evaluation_batch
        for index, start in enumerate(range(rows.start, rows.stop, size)):
            chosen = slice(start, min(start + size, rows.stop))
            yield Batch(
                self._normalised(self.x[chosen]), self.y[chosen], (self.options.name, split, "sweep", index)
            )

    def _range(self, split: Split) -> range:
        if not len(self.ranges[split]):
            raise UserError(
                f"task {self.options.name}: split {split} is empty, for task.valid_size is "
                f"{self.options.valid_size}; raise it, or do not evaluate {split}"
            )
        return self.ranges[split]

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(output, batch.y)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        output = output.detach()
        wrong = (output.argmax(-1) != batch.y).float().mean()
        return {"loss": F.cross_entropy(output, batch.y), "error": 100 * wrong}


def _ranges(options: ExampleOptions, data: Data) -> dict[str, range]:
    """Row numbers by split. Raises UserError if `valid_size` leaves too little."""
    total, first_test = len(data.x), len(data.x) - data.test
    train = first_test - options.valid_size
    if train < 2:
        raise UserError(
            f"task.valid_size: got {options.valid_size}, must be at most {first_test - 2}, for "
            f"{options.name} has {first_test} training examples"
        )
    half = math.ceil(train / 2)
    return {
        "train": range(train),
        "search_train": range(half),
        "search_valid": range(half, train),
        "valid": range(train, first_test),
        "test": range(first_test, total),
    }


def digest(*tensors: Tensor) -> str:
    """sha256 of the tensors' bytes, one after another."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().cpu().numpy().data)
    return total.hexdigest()
