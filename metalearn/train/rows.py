"""Rows of numbers in a file, one JSON object a line, each on its way to the disk before the next step."""

import json
import os
from pathlib import Path
from typing import Any

from metalearn.registry import UserError
from metalearn.train.files import replacing


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut short is left out."""
    return [json.loads(line) for line in _whole_lines(path)]


class RowFile:
    """A growing file of rows. A resumed run first cuts what came after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = _whole_lines(path)
        self._rewrite(lines)
        self.count = len(lines)  # rows in the file
        self._file = path.open("ab", buffering=0)

    def cut(self, count: int) -> None:
        """Keep the first `count` rows."""
        lines = _whole_lines(self.path)[:count]
        self._file.close()
        self._rewrite(lines)
        self.count = len(lines)
        self._file = self.path.open("ab", buffering=0)

    def cut_after(self, step: int) -> None:
        """Keep the rows up to a step."""
        self.cut(sum(row["step"] <= step for row in read_rows(self.path)))

    def append(self, row: dict[str, Any]) -> None:
        """Write a row and hand it to the system. Raises UserError naming the file if the disk is full."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write: {error.strerror}; free space and run again"
            ) from error
        if written != len(line):
            raise UserError(f"{self.path}: the disk is full; free space and run again")
        self.count += 1

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write: {error.strerror}; free space and run again"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rewrite(self, lines: list[bytes]) -> None:
        content = b"".join(lines)
        if self.path.exists() and self.path.stat().st_size == len(content):
            return
        with replacing(self.path) as file:
            file.write(content)


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    whole = []
    for line in lines:
        if not line.endswith(b"\n") or not _is_row(line):
            break
        whole.append(line)
    return whole


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
