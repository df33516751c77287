"""W&B's run-*.wandb files: records in the log format of LevelDB (doc/log_format.md there)."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

IDENTITY = struct.Struct("<4sHB")  # b":W&B", a magic number, the version
MAGIC, VERSION = 0xBEE1, 0
HEADER = struct.Struct("<IHB")  # checksum, length, kind
BLOCK = 32768  # bytes; no header begins in its last six
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """The records of a file up to the first that is cut short: a killed run leaves one.

    Raises ValueError for what is no such file or is broken before its end, OSError.
    """
    data = path.read_bytes()
    if len(data) < IDENTITY.size or IDENTITY.unpack_from(data) != (b":W&B", MAGIC, VERSION):
        raise ValueError("it does not begin as a W&B log of version 0")
    parts: list[bytes] = []
    for kind, part in _parts(data):
        if kind in (FULL, FIRST):
            parts = []
        parts.append(part)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = IDENTITY.size
    while place + HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:
            place += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, place)
        start, place = place + HEADER.size, place + HEADER.size + length
        if place > len(data) or (kind == 0 and not any(data[start - HEADER.size :])):
            return  # cut short, or room that was never written
        part = data[start:place]
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"a record's checksum is wrong at byte {start - HEADER.size}")
        yield kind, part
