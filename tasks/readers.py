"""From files, or from what is installed, to labelled examples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metalearn.rng import generator
from tasks import files, sources
from tasks.cifar import read_cifar10
from tasks.examples import Data


def read(name: str, data_dir: Path, download: bool) -> Data:
    """The labelled data set called `name`. Raises UserError for files that are missing or altered."""
    return _READERS[name](data_dir, download)


def _digits(data_dir: Path, download: bool) -> Data:  # noqa: ARG001
    """In a fixed shuffled order; the test set is a fifth of each class."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(np.asarray(pixels), dtype=torch.uint8).view(-1, 1, 8, 8)
    y = torch.tensor(np.asarray(labels), dtype=torch.int64)
    order = torch.randperm(len(y), generator=generator("digits", "split"))
    by_class = [order[y[order] == label] for label in range(10)]
    test = torch.cat([rows[: len(rows) // 5] for rows in by_class])
    train = order[~torch.isin(order, test)]
    rows = torch.cat([train, test])
    return Data(
        x[rows],
        y[rows],
        test=len(test),
        largest=16.0,
        mean=(0.3053,),  # of all 1,797 images
        deviation=(0.3760,),
        source="UCI Optical Recognition of Handwritten Digits, its test part, as scikit-learn has it",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        provenance="embedded in scikit-learn",
    )


def _two_moons(data_dir: Path, download: bool) -> Data:  # noqa: ARG001
    """1,000 points of two half circles of radius 1 with centres (0, 0) and (1, 1/2), noise 0.1; 200 test."""
    count, test, noise = 1000, 200, 0.1
    rng = generator("two_moons")
    y = torch.arange(count) % 2
    angle = torch.rand(count, generator=rng) * torch.pi
    sign = 1.0 - 2.0 * y
    x = torch.stack([sign * angle.cos() + y, sign * angle.sin() + 0.5 * y], dim=1)
    x = x + noise * torch.randn(count, 2, generator=rng)
    order = torch.randperm(count, generator=rng)
    return Data(
        x[order],
        y[order],
        test=test,
        largest=1.0,
        mean=(0.5, 0.25),  # of the curves without noise
        deviation=(0.8660, 0.4942),
        source="made here, after scikit-learn's make_moons",
        licence="none needed",
        provenance="embedded: drawn by a fixed key",
    )


def _mnist(data_dir: Path, download: bool) -> Data:
    parts = {key: _idx(files.read(file, data_dir, download)) for key, file in sources.MNIST.items()}
    return Data(
        torch.cat([parts["train_images"], parts["test_images"]]).unsqueeze(1),
        torch.cat([parts["train_labels"], parts["test_labels"]]).long(),
        test=len(parts["test_labels"]),
        largest=255.0,
        mean=(0.1307,),  # the customary constants, of the training images
        deviation=(0.3081,),
        source="LeCun, Cortes, Burges: the MNIST database of handwritten digits",
        licence="CC BY-SA 3.0",
        provenance="original idx files, verified by digest",
    )


def _idx(content: bytes) -> Tensor:
    """The array of an idx file of unsigned bytes: 4 bytes of type and rank, big-endian sizes, values."""
    rank = content[3]
    shape = np.frombuffer(content, ">u4", count=rank, offset=4).astype(int).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    return torch.tensor(values).view(shape)


_READERS: dict[str, Callable[[Path, bool], Data]] = {
    "digits": _digits,
    "two_moons": _two_moons,
    "mnist": _mnist,
    "cifar10": read_cifar10,
}
