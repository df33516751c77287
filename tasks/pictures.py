"""Photographs for neural art: which split a picture belongs to, and squares cut out of it.

The user's own are read from neural_art/content/ and neural_art/style/ of the data folder. Without them, a
photograph that comes with scikit-learn is cut into blocks, and no block belongs to two splits.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator

from metalearn.registry import UserError
from metalearn.rng import generator
from tasks.photographs import Pixels, opened, pixels

SUFFIXES = (".jpg", ".jpeg", ".png")
ROWS, COLUMNS = 3, 5  # blocks of the embedded photograph: 142 x 128 pixels each
HELD_OUT = 3  # blocks for validation, and as many for the test
Picture = Callable[[], Image.Image]


class Pictures(NamedTuple):
    """Pictures by split, of which `train` has those of its two halves; and what is to be said of them."""

    by_split: dict[str, list[Picture]]
    provenance: str
    digest: str  # sha256 of what was read


def content(data_dir: Path, valid: int, test: int) -> Pictures:
    """The content images: `valid` and `test` of the user's own are held out (section 3.4). Raises UserError.

    Which ones is drawn by a fixed key.
    """
    folder = data_dir / "neural_art" / "content"
    paths = _files(folder)
    if not paths:
        image = _embedded("china.jpg")
        said = "blocks of scikit-learn's photograph china.jpg"
        return Pictures(_halved(_blocks(image), HELD_OUT, HELD_OUT), said, _digest([image.tobytes()]))
    if len(paths) < valid + test + 2:
        raise UserError(
            f"{folder}: has {len(paths)} images, must have at least {valid + test + 2}: "
            f"task.valid_images={valid}, task.test_images={test} and two to train on; lower them"
        )
    pictures: list[Picture] = [partial(opened, path) for path in paths]
    said = f"{len(paths)} images of {folder.name}/ in data_dir"
    return Pictures(_halved(pictures, valid, test), said, _digest([path.read_bytes() for path in paths]))


def style(name: str, data_dir: Path) -> Pictures:
    """The style image alone, as split `train`: a file's stem in the style folder, flower or hopper."""
    folder = data_dir / "neural_art" / "style"
    own = {path.stem: path for path in _files(folder)}
    if name in own:
        image, said = opened(own[name]), f"{own[name].name} of style/ in data_dir"
    elif name == "flower":
        image, said = _embedded("flower.jpg"), "scikit-learn's photograph flower.jpg"
    elif name == "hopper":
        image, said = _hopper(), "matplotlib's photograph grace_hopper.jpg"
    else:
        allowed = ", ".join(("flower", "hopper", *own))
        raise UserError(f"task.style: got {name!r}, must be one of: {allowed}; or put {name}.jpg in {folder}")
    return Pictures({"train": [lambda: image]}, said, _digest([image.tobytes()]))


def square(picture: Picture, smallest: float, side: int, rng: Generator) -> Pixels:
    """A square at a uniform place, resized to `side` pixels and mirrored half of the time.

    Its old side is uniform from `smallest` of the picture's shorter side to all of it.
    """
    image = picture()
    short = min(image.size)
    part, across, down, mirrored = torch.rand(4, generator=rng, dtype=torch.float64).tolist()
    box = max(1, round(short * (smallest + (1 - smallest) * part)))
    left, upper = (int(u * (length - box + 1)) for u, length in zip((across, down), image.size, strict=True))
    image = image.crop((left, upper, left + box, upper + box))
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    return pixels(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored < 0.5 else image)


def middle(picture: Picture, side: int) -> Pixels:
    """The largest square in the middle, resized to `side` pixels."""
    image = picture()
    short = min(image.size)
    left, upper = ((length - short) // 2 for length in image.size)
    image = image.crop((left, upper, left + short, upper + short))
    return pixels(image.resize((side, side), Image.Resampling.BILINEAR))


def _halved(pictures: list[Picture], valid: int, test: int) -> dict[str, list[Picture]]:
    """In a fixed shuffled order: the test's, the validation's, and the two halves of the rest."""
    order = torch.randperm(len(pictures), generator=generator("neural_art", "split")).tolist()
    mixed = [pictures[place] for place in order]
    train = mixed[test + valid :]
    half = (len(train) + 1) // 2
    return {
        "test": mixed[:test],
        "valid": mixed[test : test + valid],
        "train": train,
        "search_train": train[:half],
        "search_valid": train[half:],
    }


def _blocks(image: Image.Image) -> list[Picture]:
    width, height = image.width // COLUMNS, image.height // ROWS
    corners = [(width * column, height * row) for row in range(ROWS) for column in range(COLUMNS)]
    parts = [image.crop((left, upper, left + width, upper + height)) for left, upper in corners]
    return [partial(Image.Image.copy, part) for part in parts]


def _embedded(name: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(np.asarray(load_sample_image(name)))


def _hopper() -> Image.Image:
    """Raises UserError where this matplotlib has come without its sample data."""
    from matplotlib import get_data_path

    path = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not path.is_file():
        raise UserError(f"task.style=hopper: no file {path}; choose task.style=flower")
    return opened(path)


def _files(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def _digest(parts: Sequence[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
