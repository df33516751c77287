"""Curves with fewer points that look the same: extremes stay, and the same steps in all runs."""

import numpy

from metalearn.compare.model import Series

SHARED = 256  # points at steps that runs of other lengths keep too
BUCKETS = 128  # each keeps its least and its greatest value


def thinned(series: Series) -> Series:
    """About 500 of a curve's points: a grid, the extremes of equal parts of it, the first and the last.

    The grid depends on the steps alone and that of a longer run is part of a shorter one's, so that means
    over runs are taken at common steps.
    """
    count = len(series.steps)
    if count <= SHARED + 2 * BUCKETS:
        return series
    kept = numpy.zeros(count, dtype=bool)
    kept[_grid(series.steps)] = True
    kept[_extremes(series.values)] = True
    kept[[0, count - 1]] = True
    places = numpy.flatnonzero(kept)
    return Series(series.steps[places], series.values[places])


def _grid(steps: numpy.ndarray) -> numpy.ndarray:
    """Where the steps are that a power of two divides; by place where such steps are too few."""
    divisor = 1
    while numpy.count_nonzero(found := steps & (divisor - 1) == 0) > SHARED:
        divisor *= 2
    if numpy.count_nonzero(found) >= SHARED // 8:
        return found
    stride = 1
    while len(steps) > SHARED * stride:
        stride *= 2
    return numpy.arange(0, len(steps), stride)


def _extremes(values: numpy.ndarray) -> numpy.ndarray:
    """Places of the least and of the greatest value of each bucket."""
    width = -(-len(values) // BUCKETS)
    rows = -(-len(values) // width)
    padded = numpy.full(rows * width, numpy.nan)
    padded[: len(values)] = values
    table = padded.reshape(rows, width)
    absent = numpy.isnan(table)
    least = numpy.where(absent, numpy.inf, table).argmin(axis=1)
    greatest = numpy.where(absent, -numpy.inf, table).argmax(axis=1)
    starts = numpy.arange(rows) * width
    return numpy.minimum(numpy.concatenate([starts + least, starts + greatest]), len(values) - 1)
