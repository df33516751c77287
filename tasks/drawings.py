"""Omniglot's drawings, read from the original archives without extracting them."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from metalearn.registry import UserError
from tasks import files, sources
from tasks.decoded import decoded

DRAWERS = 20  # people, each of whom drew every character of an alphabet once
DRAWN, SIDE = 105, 28  # pixels a side, in the archives and here
LARGEST = 1 << 14  # bytes of one image file
MOST = 1 << 15  # images of one archive
MEMBER = re.compile(r"[^/]+/([^/]+/character\d+)/\d+_(\d+)\.png")

Drawings = UInt8[Tensor, "character drawer 28 28"]


def read_omniglot(data_dir: Path, download: bool) -> Drawings:
    """Ink from 0 to 255 of every character of both archives, once, in alphabetic order of their names."""
    parts = [files.read(file, data_dir, download) for file in sources.OMNIGLOT]
    return decoded("omniglot", parts, _from_archives)["drawings"]


def _from_archives(parts: list[bytes]) -> dict[str, Tensor]:
    found: dict[tuple[str, int], bytes] = {}
    for part in parts:
        for place, content in _members(part).items():
            if found.setdefault(place, content) != content:
                raise UserError(f"omniglot: two different drawings are called {place}; get good copies")
    characters = sorted({character for character, _ in found})
    wanted = {(character, drawer) for character in characters for drawer in range(1, DRAWERS + 1)}
    if not wanted or wanted != set(found):
        raise UserError(
            f"omniglot: got {len(found)} drawings of {len(characters)} characters, must be {DRAWERS} of "
            "each; get good copies"
        )
    drawings = [
        torch.stack([_ink(found[character, drawer]) for drawer in range(1, DRAWERS + 1)])
        for character in characters
    ]
    return {"drawings": torch.stack([_shrunk(ink) for ink in drawings])}


def _members(part: bytes) -> dict[tuple[str, int], bytes]:
    """The image files of an archive by "alphabet/character" and drawer."""
    with zipfile.ZipFile(io.BytesIO(part)) as archive:
        named = [(MEMBER.fullmatch(info.filename), info) for info in archive.infolist()]
        images = [(match, info) for match, info in named if match is not None]
        if len(images) > MOST or any(info.file_size > LARGEST for _, info in images):
            raise UserError(
                f"omniglot: an archive has more than {MOST} images or one above {LARGEST} bytes; get a "
                "good copy"
            )
        return {(match[1], int(match[2])): archive.read(info) for match, info in images}


def _ink(encoded: bytes) -> Float[Tensor, "105 105"]:
    """1 where there is ink; the header's size is looked at before anything is unpacked."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        if image.size != (DRAWN, DRAWN):
            raise UserError(
                f"omniglot: got an image of {image.size} pixels, must be {(DRAWN, DRAWN)}; get a good copy"
            )
        return torch.tensor(np.asarray(image.convert("L")) < 128, dtype=torch.float32)


def _shrunk(ink: Float[Tensor, "drawer 105 105"]) -> UInt8[Tensor, "drawer 28 28"]:
    """How much of each large pixel is covered by ink: a large one is 15 quarters of a small one wide.

    Counts of quarters are whole numbers below 2^24 and no quotient lies halfway between two bytes, so the
    result is the same on every machine.
    """
    quarters = torch.eye(DRAWN).repeat_interleave(4, dim=1).unflatten(1, (SIDE, 15)).sum(-1)
    covered = quarters.T @ ink @ quarters  # of 15 x 15
    return (covered * 255 / 225).round().to(torch.uint8)
