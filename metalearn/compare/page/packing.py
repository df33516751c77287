"""Curves as text: a value takes four characters, steps that curves share are written once."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy

CHARACTERS = 13_000_000  # that all curves of a page may take
LONGEST = 1_000  # points of a curve: a chart has no more pixels
VALUE, STEP = 4, 4  # characters that a value takes, and a step in most runs


def packed(values: numpy.ndarray) -> str:
    """Values as base64 of 24-bit floats: a float32 without its last eight bits, relative error 2^-16.

    NaN and infinities stay what they are.
    """
    with numpy.errstate(over="ignore"):
        single = numpy.where(numpy.isnan(values), numpy.float32("nan"), values.astype("<f4")).astype("<f4")
    bits = single.view("<u4").astype("<u8") + 0x80  # to the nearest
    return base64.b64encode(bits.view("u1").reshape(-1, 8)[:, 1:4].tobytes()).decode()


def thinned(length: int, most: int) -> numpy.ndarray:
    """Places of at most `most` points of a curve, evenly spread, the first and the last among them."""
    if length <= most:
        return numpy.arange(length)
    return numpy.unique(numpy.linspace(0, length - 1, most).round().astype(int))


def room(curves: Sequence[tuple[numpy.ndarray, int]]) -> int:
    """Points that a curve may have, so that all of them stay within CHARACTERS.

    `curves`: the steps of each and how many values it has at a step.
    """
    axes = {numpy.ascontiguousarray(steps).tobytes(): len(steps) for steps, _ in curves}
    most = LONGEST
    while most > 2:
        values = sum(many * min(len(steps), most) for steps, many in curves)
        if VALUE * values + STEP * sum(min(length, most) for length in axes.values()) <= CHARACTERS:
            break
        most = max(2, most * 9 // 10)
    return most


class Steps:
    """The step axes of all curves, each once, as differences."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self.axes: list[list[int]] = []

    def place(self, steps: numpy.ndarray) -> int:
        """Where the axis stands in `axes`."""
        steps = numpy.ascontiguousarray(steps, dtype="int64")
        key = steps.tobytes()
        if key not in self._places:
            self._places[key] = len(self.axes)
            self.axes.append(numpy.diff(steps, prepend=0).tolist())
        return self._places[key]


def number(value: float | None) -> Any:
    """For JSON: six significant digits; what JSON has no number for as the word that JavaScript reads."""
    if value is None:
        return None
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")
