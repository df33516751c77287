"""Photographs of any size: decoding, and the augmentation of ImageNet training, as torchvision has them.

Everything that chance decides about an image is in its `Draw`, so an image is a pure function of its file and
its draw, whichever thread computes it when.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from torch import Generator, Tensor

from metalearn.registry import UserError
from tasks.config import ImagenetOptions

TRIES = 10  # boxes that may be drawn too large for the image before the middle of it is taken
Box = tuple[int, int, int, int]  # left, upper, right, lower
Pixels = UInt8[Tensor, "channel height width"]


class Draw(NamedTuple):
    """What chance decides about one training image."""

    boxes: list[list[float]]  # each of TRIES: part of the image's area, ratio of width to height
    place: list[float]  # of the box, from the left and from the top, 0 to below 1 of what room there is
    flip: bool
    factors: list[float]  # of brightness, contrast and saturation; the turn of the hue
    order: list[int]  # of these four


def draws(count: int, options: ImagenetOptions, rng: Generator) -> list[Draw]:
    """The draws of a batch."""
    uniform = torch.rand(count, TRIES, 2, generator=rng, dtype=torch.float64)
    area = options.area[0] + (options.area[1] - options.area[0]) * uniform[..., 0]
    low, high = (math.log(ratio) for ratio in options.ratio)
    ratio = (low + (high - low) * uniform[..., 1]).exp()
    place = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    flip = torch.rand(count, generator=rng) < options.flip
    signed = 2 * torch.rand(count, 4, generator=rng, dtype=torch.float64) - 1
    factors = signed * torch.tensor(options.jitter, dtype=torch.float64) + torch.tensor([1.0, 1.0, 1.0, 0.0])
    order = torch.rand(count, 4, generator=rng).argsort(dim=1)
    columns = torch.stack([area, ratio], -1), place, flip, factors, order
    return [Draw(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def train_image(path: Path, draw: Draw, options: ImagenetOptions) -> Pixels:
    """A random box of the image, resized, mirrored or not, its colours moved."""
    image = opened(path)
    image = image.crop(random_box(image.size, draw, options.ratio))
    image = image.resize((options.side, options.side), Image.Resampling.BILINEAR)
    if draw.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for which in draw.order:
        image = _COLOURS[which](image, draw.factors[which])
    return pixels(image)


def middle_image(path: Path, resize: int, side: int) -> Pixels:
    """The image with its shorter side resized, and the middle of that."""
    image = opened(path)
    width, height = image.size
    long = int(resize * max(width, height) / min(width, height))
    size = (resize, long) if width <= height else (long, resize)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, upper = (round((length - side) / 2.0) for length in size)
    return pixels(image.crop((left, upper, left + side, upper + side)))


def random_box(size: tuple[int, int], draw: Draw, ratio: Sequence[float]) -> Box:
    """The first drawn box that fits the image; else the largest in its middle of an allowed ratio."""
    width, height = size
    for part, shape in draw.boxes:
        area = part * width * height
        across, down = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < across <= width and 0 < down <= height:
            left = int(draw.place[0] * (width - across + 1))
            upper = int(draw.place[1] * (height - down + 1))
            return left, upper, left + across, upper + down
    across, down = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, upper = (width - across) // 2, (height - down) // 2
    return left, upper, left + across, upper + down


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _saturation(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _hue(image: Image.Image, turn: float) -> Image.Image:
    """Turn the colour wheel by a part of a whole turn; 255 steps are one, as in torchvision."""
    if not turn:
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.array(int(turn * 255) % 256, dtype=np.uint8)  # wraps
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


_COLOURS = (_brightness, _contrast, _saturation, _hue)


def opened(path: Path) -> Image.Image:
    """The decoded image in three channels. Raises UserError."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); put a good copy there") from None


def pixels(image: Image.Image) -> Pixels:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
