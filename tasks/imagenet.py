"""Classification of photographs that lie in one folder a class and do not fit in memory."""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, TaskSpec
from tasks.ahead import Ahead
from tasks.config import ImagenetOptions
from tasks.labelled import Labelled, error
from tasks.photographs import Pixels, draws, middle_image, train_image

ILSVRC = 1_281_167, 50_000, 1000  # images of train and val, classes
SUFFIXES = (".jpeg", ".jpg", ".png")
BEST = 5  # a second error counts a class among so many highest scores as right


class Files(NamedTuple):
    """Images by class."""

    paths: list[str]  # below the data set's folder
    y: Int64[Tensor, " image"]


class Imagenet(Labelled):
    """ILSVRC 2012, or a part of it: data_dir/imagenet/{train,val}/<class>/*.JPEG, decoded when asked for.

    Classes are the folders in the order of their names. `test` is the folder val; the images of train are
    shuffled once by a fixed key before `valid` and the halves are cut off. A training image is a random part,
    mirrored or not, of moved colours; a sweep takes the middle. All is drawn by (seed, name, split, index).
    """

    options: ImagenetOptions

    def __init__(
        self,
        options: ImagenetOptions,
        seed: int,
        data_dir: Path,
        download: bool,  # noqa: ARG002 (its licence forbids that)
        device: torch.device,
    ) -> None:
        _check(options)
        self.root, self.device = data_dir / "imagenet", device
        classes = _classes(self.root, "train")
        train, val = _shuffled(_listed(self.root, "train", classes)), _listed(self.root, "val", classes)
        super().__init__(options, seed, len(train.y), len(val.y), torch.device("cpu"))
        self.paths, self.y = train.paths + val.paths, torch.cat([train.y, val.y])
        self.decoder = Ahead(options.threads, options.ahead)
        self.mean = torch.tensor((0.485, 0.456, 0.406), device=device).view(3, 1, 1)  # the customary ones
        self.deviation = torch.tensor((0.229, 0.224, 0.225), device=device).view(3, 1, 1)
        whole = (len(train.y), len(val.y), len(classes)) == ILSVRC
        counts = f"{len(train.y)} + {len(val.y)} images in {len(classes)} classes, found in data_dir"
        self.spec = TaskSpec(
            name=options.name,
            kind="classification",
            input_shape=(3, options.side, options.side),
            outputs=len(classes),
            sizes={name: len(rows) for name, rows in self.ranges.items()},
            metric="error",
            source="Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge: ILSVRC 2012",
            licence="ImageNet terms of access: non-commercial research",
            provenance=counts if whole else f"{counts}: not ILSVRC 2012, not comparable",
            digest=hashlib.sha256("\n".join(self.paths).encode()).hexdigest(),  # of the names alone
            comparable=whole,
        )

    def batch(self, split: Split, index: int) -> Batch:
        pixels = self.decoder.get(split, index, partial(self._augmented, split))
        key = (self.seed, self.options.name, split, index)
        return Batch(self._normalised(pixels), self.y[self.rows(split, index)].to(self.device), key)

    def _augmented(self, split: Split, index: int) -> list[Callable[[], Pixels]]:
        """What makes each image of a batch, drawn before any thread starts."""
        rows = self.rows(split, index).tolist()
        rng = generator(self.seed, self.options.name, split, index, "augment")
        drawn = zip(rows, draws(len(rows), self.options, rng), strict=True)
        return [partial(train_image, self._path(row), draw, self.options) for row, draw in drawn]

    def sweep(self, split: Split) -> Iterator[Batch]:
        slices, options = self.slices(split), self.options

        def work(index: int) -> list[Callable[[], Pixels]]:
            rows = range(slices[index].start, slices[index].stop)
            return [partial(middle_image, self._path(row), options.resize, options.side) for row in rows]

        for index, rows in enumerate(slices):
            pixels = self.decoder.get(f"sweep {split}", index, work, end=len(slices))
            key = (options.name, split, "sweep", index)
            yield Batch(self._normalised(pixels), self.y[rows].to(self.device), key)

    def _path(self, row: int) -> Path:
        return self.root / self.paths[row]

    def _normalised(self, pixels: Tensor) -> Float[Tensor, "batch channel height width"]:
        return (pixels.to(self.device).float() / 255 - self.mean) / self.deviation

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        """`error`, and `error_top5`: both in %."""
        output = output.detach()
        top = error(output, batch.y, min(BEST, output.shape[-1]))
        return {"loss": self.loss(output, batch), "error": error(output, batch.y), "error_top5": top}


def _check(options: ImagenetOptions) -> None:
    for name, length in (("area", 2), ("ratio", 2), ("jitter", 4)):
        values = getattr(options, name)
        if len(values) != length or (length == 2 and values[0] > values[1]):
            allowed = "the lowest and the highest" if length == 2 else "those of the four kinds of jitter"
            raise UserError(f"task.{name}: got {values}, must be {length} numbers, {allowed}")
    if options.jitter[3] > 0.5:
        raise UserError(f"task.jitter: got a turn of the hue of {options.jitter[3]}, must be at most 0.5")
    if options.side > options.resize:
        raise UserError(
            f"task.side: got {options.side}, must be at most task.resize ({options.resize}), of which a "
            "sweep takes the middle"
        )


def _classes(root: Path, part: str) -> list[str]:
    """The names of the class folders. Raises UserError if there are none."""
    folder = root / part
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []
    if not names:
        raise UserError(
            f"task imagenet: no folder of classes in {folder}; put the images of ILSVRC 2012 there as "
            "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or name the folder that has imagenet/ by "
            "data_dir=PATH or METALEARN_DATA_DIR. They are not downloaded: image-net.org gives them to those "
            "who accept its licence"
        )
    return names


def _listed(root: Path, part: str, classes: list[str]) -> Files:
    """All images of a part, class by class in the order of their names. Raises UserError."""
    found = _classes(root, part)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise UserError(
            f"task imagenet: {root / part} has {len(found)} classes, train has {len(classes)}; not in both: "
            f"{', '.join(odd[:5])}; sort the images of val into the folders of train"
        )
    paths, y = [], []
    for label, name in enumerate(classes):
        files = sorted(e.name for e in os.scandir(root / part / name) if e.name.lower().endswith(SUFFIXES))
        paths += [f"{part}/{name}/{file}" for file in files]
        y += [label] * len(files)
    if not paths:
        raise UserError(f"task imagenet: no *.JPEG in the folders of {root / part}; put the images there")
    return Files(paths, torch.tensor(y))


def _shuffled(files: Files) -> Files:
    order = torch.randperm(len(files.y), generator=generator("imagenet", "split"))
    return Files([files.paths[row] for row in order.tolist()], files.y[order])
