"""Augmentation as batched operations on the device, a function of its generator."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

Images = Float[Tensor, "batch channel height width"]


def crop(images: Images, padding: int, rng: Generator) -> Images:
    """Pad with zeros on all sides, and cut the old size out at one of (2 padding + 1)^2 places, uniformly."""
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
    """Set a square to 0 whose centre is any pixel, uniformly; the border clips it (DeVries and Taylor 2017).

    Around a centre c it takes c - side // 2 to c + side // 2 - 1 for an even side, one more for an odd one.
    """
    batch, _, height, width = images.shape
    centres = [torch.randint(0, size, (batch, 1), generator=rng) for size in (height, width)]
    rows, columns = (
        ((torch.arange(size) - centre + side // 2) // side == 0).to(images.device)
        for size, centre in zip((height, width), centres, strict=True)
    )
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)
