"""Classification of labelled examples, which live on the device as one tensor."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metalearn.registry import UserError
from metalearn.rng import Key, generator
from metalearn.task import Batch, Metrics, Split, TaskSpec
from tasks import augment
from tasks.config import ExampleOptions, ImageOptions
from tasks.labelled import Labelled, error


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


class Examples(Labelled):
    """Labelled examples, images or vectors.

    Embedded sets have no official test set: their readers put the examples into a fixed shuffled order, the
    last of which are the test set. Augmentation is drawn by (seed, name, split, index); `sweep` has none.
    """

    def __init__(
        self, options: ExampleOptions, seed: int, data_dir: Path, download: bool, device: torch.device
    ) -> None:
        from tasks.readers import read

        data = read(options.name, data_dir, download)
        if isinstance(options, ImageOptions) and options.labels is not None:
            data = _only(data, options.labels)
        super().__init__(options, seed, len(data.x) - data.test, data.test, device)
        self.x, self.y, self.largest = data.x.to(device), data.y.to(device), data.largest
        shape = (1, -1) + (1,) * (data.x.dim() - 2)
        self.mean = torch.tensor(data.mean, device=device).view(shape)
        self.deviation = torch.tensor(data.deviation, device=device).view(shape)
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

    def batch(self, split: Split, index: int) -> Batch:
        rows = self.rows(split, index)
        key = (self.seed, self.options.name, split, index)
        return Batch(self._augmented(self.x[rows], key), self.y[rows], key)

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

    def sweep(self, split: Split) -> Iterator[Batch]:
        for index, rows in enumerate(self.slices(split)):
            key = (self.options.name, split, "sweep", index)
            yield Batch(self._normalised(self.x[rows]), self.y[rows], key)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        output = output.detach()
        return {"loss": self.loss(output, batch), "error": error(output, batch.y)}


def _only(data: Data, labels: list[int]) -> Data:
    """The examples of some classes, in their order, renumbered 0, 1, ... as `labels` lists them.

    Raises UserError.
    """
    known = sorted(set(data.y.tolist()))
    if len(labels) < 2 or len(set(labels)) < len(labels) or set(labels) - set(known):
        raise UserError(
            f"task.labels: got {labels}, must be null or two or more of {known[0]} to {known[-1]}, each once"
        )
    matches = data.y[:, None] == torch.tensor(labels)
    kept = matches.any(1)
    return data._replace(
        x=data.x[kept],
        y=matches[kept].int().argmax(1),
        test=int(kept[len(kept) - data.test :].sum()),
        provenance=f"{data.provenance}; of it only labels {', '.join(map(str, labels))}",
    )


def digest(*tensors: Tensor) -> str:
    """sha256 of the tensors' bytes, one after another."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.contiguous().cpu().numpy().data)
    return total.hexdigest()
