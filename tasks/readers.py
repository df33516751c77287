"""From files, or from what is installed, to labelled examples."""

from collections.abc import Callable
from pathlib import Path

import torch

from metalearn.rng import generator
from tasks.examples import Data


def read(name: str, data_dir: Path, download: bool) -> Data:
    """The labelled data set called `name`. Raises UserError for files that are missing or altered."""
    return READERS[name](data_dir, download)


def _digits(data_dir: Path, download: bool) -> Data:  # noqa: ARG001
    """In a fixed shuffled order; the test set is a fifth of each class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.uint8).unsqueeze(1)
    y = torch.tensor(bunch.target, dtype=torch.int64)
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
        source="UCI Optical Recognition of Handwritten Digits, test part, as in scikit-learn's load_digits",
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
        mean=(0.5, 0.25),  # of the noiseless curves
        deviation=(0.8690, 0.4961),
        source="made here, after scikit-learn's make_moons",
        licence="none needed",
        provenance="embedded: drawn by a fixed key",
    )


READERS: dict[str, Callable[[Path, bool], Data]] = {
    "digits": _digits,
    "two_moons": _two_moons,
}
