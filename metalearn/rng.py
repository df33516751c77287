"""Randomness as a function of a key: the same key, the same stream, on any machine, in any process."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Key = str | int


def seed_of(*key: Key) -> int:
    """A 63-bit seed from a key, by digest (Python's own string hash differs between processes)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: Key) -> torch.Generator:
    """A CPU generator for the stream named by `key`, e.g. `generator(seed, "train", epoch)`.

    Numbers are always drawn on the CPU and then moved, so that a run sees the same ones on any device.
    """
    return torch.Generator().manual_seed(seed_of(*key))


@contextmanager
def seeded(*key: Key) -> Iterator[None]:
    """Run a block with torch's global generators seeded by `key`, and restore them afterwards.

    It makes dropout a pure function of its key: two passes over one batch, both inside
    `seeded(*batch.key)`, draw the same masks (common random numbers).
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*key))
        yield
