"""Files that are whole or absent: written beside the target, then moved over it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from metalearn.registry import UserError

PREFIX = ".tmp-"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well; otherwise `path` stays as it was.

    Both the bytes and the name are on the disk afterwards, so that neither kill -9 nor a power cut leaves
    half a file under `path`. Raises OSError.
    """
    temporary = path.with_name(f"{PREFIX}{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the folder's names to the disk, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Put `text` in the place of `path`, as UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Put `value` in the place of `path`, as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, or an empty one if there is none. Raises UserError for a damaged file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it and run the same command again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is damaged (no JSON object); delete it and run the same command again")
    return value


def remove_stale(folder: Path) -> None:
    """Delete what a killed writer left; only for the holder of the folder's lock."""
    for path in folder.glob(PREFIX + "*"):
        path.unlink(missing_ok=True)
