"""metrics.jsonl as arrays: what json reads of it, an order of magnitude sooner."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from metalearn.compare.model import Series
from metalearn.records import rows_of

START = b'{"step": '  # of every row that our writer wrote


class Reader:
    """Reads files of like runs: arrow is sooner done with columns that it expects, those of the last file."""

    def __init__(self) -> None:
        self._expected: Sequence[str] = ()

    def read(self, path: Path) -> dict[str, Series]:
        """All values of each metric, those of rows up to the first that is torn. An absent file has none."""
        data = path.read_bytes() if path.exists() else b""
        found = by_arrow(data[: data.rfind(b"\n") + 1], self._expected)
        if found is None:
            return by_json(data)
        self._expected = list(found)
        return found


def by_arrow(data: bytes, expected: Sequence[str] = ()) -> dict[str, Series] | None:
    """Whole rows as our writer leaves them; None for anything else, which `by_json` reads.

    `expected`: names that the rows may have; others, or what is no number, take a second look.
    """
    count = data.count(b"\n")
    if count == 0 or not data.startswith(START) or data.count(b"\n" + START) != count - 1:
        return None
    import pyarrow

    table = _table(data, expected)
    if table is None:
        return None
    names, types = table.column_names, [field.type for field in table.schema]
    sound = all(pyarrow.types.is_int64(kind) or pyarrow.types.is_float64(kind) for kind in types)
    steps = table.column(names.index("step"))
    if not sound or table.num_rows != count or len(set(names)) != len(names) or steps.null_count:
        return None
    if not pyarrow.types.is_int64(steps.type):
        return None
    every = steps.to_numpy()
    columns = ((name, table.column(name)) for name in names if name != "step")
    found = {name: _series(every, column) for name, column in columns if column.null_count < count}
    # json alone says which spellings of what is not finite are numbers
    return found if all(numpy.isfinite(series.values).all() for series in found.values()) else None


def _table(data: bytes, expected: Sequence[str]) -> Any:
    """Arrow's table of the rows, by the expected columns if they are what is there; None: it cannot."""
    import pyarrow
    from pyarrow import json as reader

    whole = reader.ReadOptions(use_threads=False, block_size=len(data) + 1)
    known = [("step", pyarrow.int64()), *((name, pyarrow.float64()) for name in expected)]
    guesses = [
        reader.ParseOptions(explicit_schema=pyarrow.schema(known), unexpected_field_behavior="error"),
        reader.ParseOptions(),
    ]
    for guess in guesses if expected else guesses[1:]:
        with contextlib.suppress(pyarrow.ArrowInvalid):
            return reader.read_json(pyarrow.BufferReader(data), read_options=whole, parse_options=guess)
    return None


def by_json(data: bytes) -> dict[str, Series]:
    """The rule itself: rows are objects with a step, the first other line ends the file, numbers count."""
    return from_rows(rows_of(data), "step")


def from_rows(rows: Iterable[Mapping[str, Any]], step: str) -> dict[str, Series]:
    """Series of the numbers in rows, each of which has a `step`."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != step and isinstance(value, int | float):
                steps, values = found.setdefault(name, ([], []))
                steps.append(row[step])
                values.append(_float(value))
    return {
        name: Series(numpy.array(steps).astype(numpy.int64), numpy.array(values))
        for name, (steps, values) in found.items()
    }


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond float64
        return float("inf") if value > 0 else float("-inf")


def _series(steps: numpy.ndarray, column: Any) -> Series:
    if column.null_count == 0:
        return Series(steps, column.to_numpy().astype(numpy.float64))
    there = column.is_valid().to_numpy()
    return Series(steps[there], column.drop_null().to_numpy().astype(numpy.float64))
