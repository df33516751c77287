"""Large parallel corpora as symbols in files that are mapped into memory, made once."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.registry import UserError
from tasks.config import Wmt14EnFrOptions
from tasks.files import cache_dir
from tasks.translation import Part, Sentences
from tasks.word_pieces import WordPieces

FORMAT = 1  # of the files
AT_ONCE = 20_000  # pairs that are encoded together
SIDES = ("source", "target")
Pairs = Callable[[], Iterator[tuple[str, str]]]  # reads a split from its beginning


class Encoded(NamedTuple):
    """A corpus in word pieces."""

    parts: dict[str, Part]
    references: dict[str, list[str]]  # targets of valid and test
    pieces: WordPieces
    digest: str  # of all text


def encode_once(pairs: dict[str, Pairs], identity: str, options: Wmt14EnFrOptions) -> Encoded:
    """The corpus from the cache; if it is not there, learn pieces from `train`, encode all and keep it."""
    key = f"{FORMAT} {identity} {options.pieces} {options.coverage} {options.piece_pairs}"
    folder = cache_dir() / "translation" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.is_dir():
        _make(folder, pairs, options)
    about = json.loads((folder / "about.json").read_text())
    parts = {split: Part(*(_mapped(folder, split, side) for side in SIDES)) for split in pairs}
    pieces = WordPieces((folder / "pieces.model").read_bytes())
    return Encoded(parts, about["references"], pieces, about["digest"])


def _mapped(folder: Path, split: str, side: str) -> Sentences:
    """Symbols stay in the file until they are asked for."""
    symbols, offsets = (folder / f"{split}.{side}.{kind}" for kind in ("symbols", "offsets"))
    empty = not symbols.stat().st_size  # which cannot be mapped
    return Sentences(
        np.zeros(0, np.uint16) if empty else np.memmap(symbols, np.uint16, "r"),
        np.memmap(offsets, np.int64, "r"),
    )


def _make(folder: Path, pairs: dict[str, Pairs], options: Wmt14EnFrOptions) -> None:
    """Beside its place first, so that what is in place is whole; who comes second throws their own away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".draft."))
    try:
        pieces = _learn(pairs["train"], options)
        (draft / "pieces.model").write_bytes(pieces.model)
        total = hashlib.sha256()
        references = {split: _encode(draft, split, read, pieces, total) for split, read in pairs.items()}
        about = {"digest": total.hexdigest(), "references": {k: references[k] for k in ("valid", "test")}}
        (draft / "about.json").write_text(json.dumps(about))
        if not folder.is_dir():
            draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _learn(train: Pairs, options: Wmt14EnFrOptions) -> WordPieces:
    """Pieces from evenly spaced pairs."""
    count = sum(1 for _ in train())
    if not count:
        raise UserError(f"task {options.name}: its training files hold no pair; put others there")
    stride = max(1, count // options.piece_pairs)
    chosen = islice(train(), 0, None, stride)
    return WordPieces.learn((text for pair in chosen for text in pair), options.pieces, options.coverage)


def _encode(folder: Path, split: str, read: Pairs, pieces: WordPieces, total: "hashlib._Hash") -> list[str]:
    """Write a split, some pairs at a time; the targets' text if it is one to be scored on."""
    texts: list[str] = []
    writers = [_Writer(folder, split, side) for side in SIDES]
    stream = read()
    while chunk := list(islice(stream, AT_ONCE)):
        for writer, side in zip(writers, zip(*chunk, strict=True), strict=True):
            writer.write(pieces.encode(side))
            total.update("\n".join(side).encode())
        texts += [target for _, target in chunk] if split != "train" else []
    for writer in writers:
        writer.close()
    return texts


class _Writer:
    """Appends sentences to a file of symbols and one of offsets."""

    def __init__(self, folder: Path, split: str, side: str) -> None:
        self.symbols = (folder / f"{split}.{side}.symbols").open("wb")
        self.offsets = (folder / f"{split}.{side}.offsets").open("wb")
        self.end = 0
        self.offsets.write(np.int64(0).tobytes())

    def write(self, sentences: list[list[int]]) -> None:
        part = Sentences.of(sentences)
        self.symbols.write(part.symbols.tobytes())
        self.offsets.write((part.offsets[1:] + self.end).tobytes())
        self.end += int(part.offsets[-1])

    def close(self) -> None:
        self.symbols.close()
        self.offsets.close()
