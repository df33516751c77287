"""A text with strips of colour below it: how far weights moved when each of its symbols was read."""

import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLUMN, TEXT, STRIP, GAP = 11, 19, 10, 12  # pixels: a character's width; heights
LEFT, TOP, MARGIN = 32, 62, 14
WIDEST = 60  # characters of a line
STOPS = ((247, 249, 252), (140, 182, 222), (30, 94, 165), (8, 37, 84))  # white, light to dark blue
SHADES = 24
LISTED = 8  # strips whose numbers fit beside the scale of colours
INK, NOTHING = "#24292f", "#e4e6e9"
SHOWN = {"\n": "↵", "\t": "⇥", "\x7f": "␡"}
PICTURES = 0x2400  # Unicode's pictures of control characters


class Symbol(NamedTuple):
    """Where a symbol stands, and how it is written."""

    line: int
    column: int
    text: str


def draw(words: Sequence[str], strips: Mapping[str, Sequence[float]]) -> str:
    """A text as SVG: below every line a strip for each name, white for 0, darkest for the strip's largest.

    Strips are one shorter than the text: before its first symbol there is nothing to change from.
    """
    symbols = _places(words)
    step = TEXT + STRIP * len(strips) + GAP
    tops = [TOP + line * step for line in range(1 + max(symbol.line for symbol in symbols))]
    width, height = LEFT + WIDEST * COLUMN + MARGIN, tops[-1] + step - GAP + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" fill="{INK}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_legend(strips),
        '<g shape-rendering="crispEdges">',
        *_colours(symbols, tops, list(strips.values())),
        "</g>",
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="15" text-anchor="middle">',
        *_writing(symbols, tops),
        "</g>",
        '<g font-size="10" text-anchor="end">',
        *_names(list(strips), tops),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def shade(share: float) -> str:
    """A colour between white for 0 and dark blue for 1."""
    place = min(max(share, 0.0), 1.0) * (len(STOPS) - 1)
    left = min(int(place), len(STOPS) - 2)
    mixed = (a + (b - a) * (place - left) for a, b in zip(STOPS[left], STOPS[left + 1], strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _places(words: Sequence[str]) -> list[Symbol]:
    """Symbols in lines; where some have more than one character, they are words and parted by spaces."""
    space = int(any(len(word) > 1 for word in words))
    symbols, line, column = [], 0, 0
    for word in words:
        text = "".join(map(_visible, word))[:WIDEST]
        if column and column + len(text) > WIDEST:
            line, column = line + 1, 0
        symbols.append(Symbol(line, column, text))
        column += len(text) + space
    return symbols


def _visible(character: str) -> str:
    if character in SHOWN:
        return SHOWN[character]
    if unicodedata.category(character).startswith("C"):
        return chr(PICTURES + ord(character)) if ord(character) < 32 else "\ufffd"
    return character


def _colours(symbols: Sequence[Symbol], tops: Sequence[int], strips: Sequence[Sequence[float]]) -> list[str]:
    """One path for each shade, and one for what has no change: the first symbol."""
    boxes: dict[str, list[str]] = {}
    for row, values in enumerate(strips):
        largest = max(values, default=0.0)
        shares = [value / largest if largest > 0 else 0.0 for value in values]
        fills = [NOTHING, *(shade(round(share * (SHADES - 1)) / (SHADES - 1)) for share in shares)]
        for symbol, fill in zip(symbols, fills, strict=True):
            across, down = LEFT + symbol.column * COLUMN, tops[symbol.line] + TEXT + row * STRIP
            wide = max(len(symbol.text), 1) * COLUMN
            boxes.setdefault(fill, []).append(f"M{across} {down}h{wide}v{STRIP - 1}h-{wide}z")
    return [f'<path fill="{fill}" d="{"".join(paths)}"/>' for fill, paths in boxes.items()]


def _writing(symbols: Sequence[Symbol], tops: Sequence[int]) -> list[str]:
    """Every line as one element with each character's place; blanks, which would collapse, are left out."""
    lines: list[list[tuple[str, float]]] = [[] for _ in tops]
    for symbol in symbols:
        for offset, character in enumerate(symbol.text):
            if not character.isspace():
                across = LEFT + (symbol.column + offset + 0.5) * COLUMN
                lines[symbol.line].append((character, across))
    return [
        f'<text x="{" ".join(f"{across:g}" for _, across in line)}" y="{top + 14}">'
        f"{escape(''.join(character for character, _ in line))}</text>"
        for line, top in zip(lines, tops, strict=True)
        if line
    ]


def _names(names: Sequence[str], tops: Sequence[int]) -> list[str]:
    return [
        f'<text x="{LEFT - 7}" y="{top + TEXT + row * STRIP + 8}">{escape(name)}</text>'
        for top in tops
        for row, name in enumerate(names)
    ]


def _legend(strips: Mapping[str, Sequence[float]]) -> list[str]:
    """What is shown; the scale of colours; and what its dark end stands for in each strip."""
    steps, across = 12, LEFT + 14
    scale = [
        f'<rect x="{across + 9 * step}" y="34" width="9" height="10" fill="{shade(step / (steps - 1))}"/>'
        for step in range(steps)
    ]
    numbers = [f"{name} {max(values, default=0.0):.3g}" for name, values in strips.items()]
    largest = ", ".join(numbers) if len(numbers) <= LISTED else "each strip's own"
    return [
        f'<text x="{LEFT}" y="20" font-size="13">'
        "How far the recurrent matrices moved when a symbol was read</text>",
        f'<text x="{LEFT}" y="43">0</text>',
        f'<g shape-rendering="crispEdges">{"".join(scale)}</g>',
        f'<text x="{across + 9 * steps + 7}" y="43">largest Frobenius norm: {escape(largest)}</text>',
    ]
