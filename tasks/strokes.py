"""Pen strokes as a vector picture."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

HEIGHT = 60.0  # of a line of writing with its space, in pixels
SCALE = 0.28  # of that height: the middle half of the heights that pens reach is drawn so tall
MARGIN = 12.0
TITLE = 22.0
LONGEST = 2000.0  # a wild line is shrunk to so many pixels
INK = "#4477aa"


class Column(NamedTuple):
    """Lines of writing under a title; each line is the pen's moves and lifts, [time 3]."""

    title: str
    lines: Sequence[Float[Tensor, "time 3"]]


class _Line(NamedTuple):
    path: str  # SVG's path commands
    width: float


def svg(columns: Sequence[Column]) -> str:
    """Columns side by side; y grows downwards, as tablets and SVG have it."""
    parts, left, rows = [], MARGIN, max(len(column.lines) for column in columns)
    titled = TITLE if any(column.title for column in columns) else 0.0
    for column in columns:
        lines = [_line(moves) for moves in column.lines]
        if column.title:
            parts.append(f'<text x="{left:.1f}" y="{MARGIN + 8:.1f}">{escape(column.title)}</text>')
        for row, line in enumerate(lines):
            middle = MARGIN + titled + (row + 0.5) * HEIGHT
            parts.append(f'<path transform="translate({left:.1f} {middle:.1f})" d="{line.path}"/>')
        left += max((line.width for line in lines), default=0.0) + 3 * MARGIN
    width, height = left - 2 * MARGIN, 2 * MARGIN + titled + rows * HEIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" font-size="12" fill="#777777">'
    )
    pen = f'stroke="{INK}" stroke-width="1.4" stroke-linecap="round" stroke-linejoin="round"'
    texts = [part for part in parts if part.startswith("<text")]
    paths = [part for part in parts if part.startswith("<path")]
    return "\n".join([head, *texts, f'<g fill="none" {pen}>', *paths, "</g>", "</svg>"]) + "\n"


def _line(moves: Tensor) -> _Line:
    """One line, its middle at y = 0, scaled by the heights that its pen reaches."""
    moves = moves.detach().double().cpu()  # a picture is text, made on the host
    places = torch.cat([moves.new_zeros(1, 2), moves[:, :2].cumsum(0)])
    low, high = places[:, 1].quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    wide = float(places[:, 0].max() - places[:, 0].min())
    scale = min(SCALE * HEIGHT / max(high - low, 1e-9), LONGEST / max(wide, 1e-9))
    places = (places - torch.stack([places[:, 0].min(), places[:, 1].median()])) * scale
    down = torch.cat([moves.new_ones(1, dtype=torch.bool), moves[:-1, 2] < 0.5])  # lifted by the move before?
    commands = [f"M{places[0, 0]:.1f} {places[0, 1]:.1f}"]
    for draws, (x, y) in zip(down.tolist(), places[1:].tolist(), strict=True):
        commands.append(f"{'L' if draws else 'M'}{x:.1f} {y:.1f}")
    return _Line("".join(commands), wide * scale)
