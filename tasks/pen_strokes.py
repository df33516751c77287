"""A synthetic hand: words in a font of strokes, written with slant, drift, speed and jitter."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from metalearn.rng import generator
from tasks.config import PenStrokesOptions
from tasks.handwriting import Handwriting, Lines

SIZES = {"train": 2000, "valid": 200, "test": 200}
# letters as strokes, strokes as control points "xy" of hexadecimal digits: 4 is the baseline, 8 the height of
# an x, c that of an l, 0 the depth of a p; curves go through all points
FONT = {
    "a": "47 28 06 14 34 47 44 55", "b": "0c 08 04 08 28 46 34 14 05", "c": "47 28 06 14 34 45",
    "d": "47 28 06 14 34 46 4c 44 55", "e": "06 46 37 18 05 14 34 45", "f": "4b 3c 2a 27 24|08 38",
    "g": "47 28 06 15 36 48 44 31 10 01", "h": "0c 08 04 07 28 47 44", "i": "08 05 14 25|0a 0b",
    "j": "28 24 11 00|2a 2b", "k": "0c 08 04|38 06 34 45", "l": "0c 07 05 14 25",
    "m": "08 04 07 18 27 24 27 38 47 44", "n": "08 04 07 28 47 44", "o": "28 06 14 34 46 38 28",
    "p": "08 04 00 06 28 46 34 14 05", "q": "47 28 06 14 35 48 44 40 52", "r": "08 04 06 18 38",
    "s": "47 28 07 26 45 24 05", "t": "1b 18 15 24 35|08 38", "u": "08 05 14 34 46 48 44 55",
    "v": "08 16 24 36 48", "w": "08 14 27 34 48", "x": "08 26 44|48 26 04", "y": "08 06 15 36 48 44 31 10 01",
    "z": "08 48 26 04 44",
}  # fmt: skip
TEXT = """
paper letter learn weight number hyper layer gate small large writing hand stroke pattern memory unit
summer winter morning garden dinner silence thought people water simple gentle island parent strong
mother father sister window planet stream travel wonder yellow orange silver bottle carpet forest
"""
WORDS = TEXT.split()
RATE = 1.7  # points between two control points, at usual speed
GAP = 1.6  # between letters, in units of the font
RESOLUTION = 1024.0  # steps of the tablet in a unit of the font


class Words(NamedTuple):
    """All strokes of all words, padded at their ends."""

    control: Float[Tensor, "stroke control 2"]  # before and behind each stroke one more, for its ends
    segments: Int64[Tensor, " stroke"]
    word: Int64[Tensor, " stroke"]  # the word that it belongs to


class PenStrokes(Handwriting):
    """Words of a fixed list, each time in another hand; `SIZES` lines by split, the same in every run.

    A hand has its slant, size, width, drift of the baseline and speed. A made-up set: it stands in for real
    writing where there is none, and its losses compare with no published ones.
    """

    def __init__(
        self,
        options: PenStrokesOptions,
        seed: int,
        data_dir: Path,  # noqa: ARG002
        download: bool,  # noqa: ARG002
        device: torch.device,
    ) -> None:
        super().__init__(options, seed, _written(), device)


def _written() -> Lines:
    rng = generator("pen_strokes")
    chosen = torch.randint(len(WORDS), (sum(SIZES.values()),), generator=rng)
    words = _laid_out([WORDS[word] for word in chosen.tolist()])
    points, lifted, word = _hand(words, len(chosen), rng)
    moves = points.diff(dim=0)
    moves = torch.cat([moves, lifted[1:, None].to(moves.dtype)], dim=1)[word[1:] == word[:-1]]
    return Lines(
        moves=((moves * RESOLUTION).round() / RESOLUTION).float(),
        lengths=word.bincount(minlength=len(chosen)) - 1,
        ranges={
            "train": range(SIZES["train"]),
            "valid": range(SIZES["train"], SIZES["train"] + SIZES["valid"]),
            "test": range(len(chosen) - SIZES["test"], len(chosen)),
        },
        source="synthetic: words in a stroke font of this project, written by random hands",
        licence="Python code of this project",
        provenance="embedded: drawn from a fixed key; no real writing, compares with no published loss",
        comparable=False,
    )


def _laid_out(texts: list[str]) -> Words:
    """Letters side by side, each stroke with its control points."""
    font = {letter: _strokes(drawn) for letter, drawn in FONT.items()}
    longest = max(len(stroke) for strokes in font.values() for stroke in strokes)
    controls, segments, owners = [], [], []
    for number, text in enumerate(texts):
        left = 0.0
        for letter in text:
            for stroke in font[letter]:
                places = [(x + left, y) for x, y in (stroke[0], *stroke, stroke[-1])]
                controls.append(places + places[-1:] * (longest + 2 - len(places)))
                segments.append(len(stroke) - 1)
                owners.append(number)
            left += max(x for stroke in font[letter] for x, _ in stroke) + GAP
    control = torch.tensor(controls, dtype=torch.float64)
    return Words(control, torch.tensor(segments), torch.tensor(owners))


def _strokes(drawn: str) -> list[list[tuple[int, int]]]:
    """Control points of each stroke of a letter, y upwards from the baseline."""
    return [[(int(p[0], 16), int(p[1], 16) - 4) for p in stroke.split()] for stroke in drawn.split("|")]


def _hand(words: Words, count: int, rng: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points [point 2] as the pen meets them, y downwards; whether it is lifted after each; its word."""
    slant, size, width, drift, speed, phase = _normal((6, count), rng)
    pace = RATE * torch.exp(-0.12 * speed)[words.word]
    numbers = (words.segments * pace).round().long().clamp(min=2)
    steps = torch.arange(int(numbers.max()))
    here = steps < numbers[:, None]
    x, y = _curve(words, steps / (numbers[:, None] - 1)).unbind(-1)
    x, y, owner = x[here], y[here], words.word[:, None].expand_as(here)[here]
    size, width = 0.25 * torch.exp(0.12 * size)[owner], torch.exp(0.1 * width)[owner]
    wave = 0.3 * torch.sin(0.25 * x + 3.0 * phase[owner])
    y = y + wave + 0.03 * drift[owner] * x
    points = torch.stack([size * (width * x + (0.2 + 0.15 * slant[owner]) * y), -size * y], dim=1)
    points = points + 0.012 * _normal((len(points), 2), rng)
    last = (steps == numbers[:, None] - 1)[here]
    return points, last, owner


def _curve(words: Words, share: Float[Tensor, "stroke time"]) -> Float[Tensor, "stroke time 2"]:
    """Catmull-Rom splines at a share, 0 to 1, of each stroke's control points; fast where they are sparse."""
    position = share.clamp(0.0, 1.0).double() * words.segments[:, None]
    segment = torch.minimum(position.floor().long(), words.segments[:, None] - 1)
    t = (position - segment).unsqueeze(-1)
    row = torch.arange(len(segment))[:, None]
    a, b, c, d = (words.control[row, segment + place] for place in range(4))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def _normal(shape: tuple[int, ...], rng: Generator) -> Tensor:
    """Normal draws within two deviations: no hand is illegible."""
    return torch.randn(shape, generator=rng, dtype=torch.float64).clamp(-2.0, 2.0)
