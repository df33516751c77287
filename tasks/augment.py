"""Augmentation as batched operations on the device, a function of its generator."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

Images = Float[Tensor, "batch channel height width"]


def crop(images: Images, padding: int, rng: Generator) -> Images:
    """Pad with zeros on all sides, then cut the old size out at a uniformly drawn place."""
    batch, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, batch), generator=rng).to(images.device)
    padded = F.pad(images, (padding,) * 4)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = offsets[1, :, None] + torch.arange(width, device=images.device)
    example = torch.arange(batch, device=images.device)[:, None, None]
    # advanced indices around a slice: the channel axis comes out last
    return padded[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip(images: Images, rng: Generator) -> Images:
    """Mirror each image left to right with probability 1/2."""
    mirrored = (torch.rand(len(images), generator=rng) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def cutout(images: Images, side: int, rng: Generator) -> Images:
    """Set a square to 0, centred uniformly over the image and clipped at its border (DeVries 2017)."""
    batch, _, height, width = images.shape
    draw = torch.rand(2, batch, generator=rng).to(images.device)
    top = (draw[0] * height).floor()[:, None] - side // 2
    left = (draw[1] * width).floor()[:, None] - side // 2
    rows = torch.arange(height, device=images.device)[None]
    columns = torch.arange(width, device=images.device)[None]
    inside_rows = (rows >= top) & (rows < top + side)
    inside_columns = (columns >= left) & (columns < left + side)
    hole = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)
