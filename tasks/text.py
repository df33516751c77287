"""Texts as sequences of symbols: language modelling with carried state."""

import hashlib
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from tasks import sources
from tasks.config import TextOptions
from tasks.files import read

ASCII = [chr(code) for code in range(32, 127)]


class Corpus(NamedTuple):
    """A text split into symbols, with its alphabet."""

    parts: dict[str, list[str]]  # symbols by split: train, valid, test
    alphabet: list[str]
    words: bool  # symbols are words, and perplexity is reported
    source: str
    licence: str
    provenance: str


class Text(Task):
    """Predict the next symbol of a text.

    `batch` reads the split as `batch` parallel rows, `time` symbols at a time, from left to right and over
    again; consecutive indices continue each other. `sweep` reads it once in `evaluation_batch` rows; the
    fewer than `evaluation_batch` symbols that do not fill a row are left out (none for one row).
    `search_train` and `search_valid` are the first and the second half of `train`.
    """

    def __init__(
        self, options: TextOptions, seed: int, data_dir: Path, download: bool, device: torch.device
    ) -> None:
        corpus = _READERS[options.name](data_dir, download)
        self.options, self.seed, self.words = options, seed, corpus.words
        self.alphabet = corpus.alphabet
        self.index = {symbol: place for place, symbol in enumerate(corpus.alphabet)}
        self.symbols = {split: self.encode(part).to(device) for split, part in corpus.parts.items()}
        half = len(self.symbols["train"]) // 2
        self.symbols["search_train"] = self.symbols["train"][:half]
        self.symbols["search_valid"] = self.symbols["train"][half:]
        content = "\x1f".join("\x1e".join(part) for part in corpus.parts.values())
        self.spec = TaskSpec(
            name=options.name,
            kind="language_model",
            input_shape=(),
            outputs=len(corpus.alphabet),
            sizes={split: len(part) for split, part in self.symbols.items()},
            metric="perplexity" if corpus.words else "bits",
            source=corpus.source,
            licence=corpus.licence,
            provenance=corpus.provenance,
            digest=hashlib.sha256(content.encode()).hexdigest(),
        )

    def encode(self, text: str | list[str]) -> Int[Tensor, " time"]:
        """Symbols as places in the alphabet. Raises UserError for a symbol that is not in it."""
        try:
            return torch.tensor([self.index[symbol] for symbol in text])
        except KeyError as error:
            raise UserError(f"{error} is not in the alphabet of {self.options.name}") from None

    def decode(self, symbols: Int[Tensor, " time"]) -> str:
        """The text that `encode` read."""
        return (" " if self.words else "").join(self.alphabet[int(place)] for place in symbols)

    def batches(self, split: Split) -> int:
        count = (len(self.symbols[split]) - 1) // self.options.batch // self.options.time
        if not count:
            raise UserError(
                f"task.batch x task.time: got {self.options.batch} x {self.options.time}, must be below "
                f"{len(self.symbols[split])}, the symbols of {self.options.name}'s split {split}"
            )
        return count

    def batch(self, split: Split, index: int) -> Batch:
        place = index % self.batches(split)
        rows, time = self.options.batch, self.options.time
        x, y = _rows(self.symbols[split], rows)
        window = slice(place * time, (place + 1) * time)
        return Batch(x[:, window], y[:, window], (self.seed, self.options.name, split, index))

    def sweep(self, split: Split) -> Iterator[Batch]:
        time = self.options.evaluation_time
        x, y = _rows(self.symbols[split], self.options.evaluation_batch)
        for place in range(math.ceil(x.shape[1] / time)):
            window = slice(place * time, (place + 1) * time)
            yield Batch(x[:, window], y[:, window], (self.options.name, split, "sweep", place))

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(output.flatten(0, 1), batch.y.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        loss = self.loss(output, batch).detach()
        return {"loss": loss} if self.words else {"loss": loss, "bits": loss / math.log(2)}


def _rows(symbols: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets [row time]: the text cut into equal rows, targets one symbol ahead."""
    length = (len(symbols) - 1) // rows
    return symbols[: rows * length].view(rows, length), symbols[1 : rows * length + 1].view(rows, length)


def plain_ascii(text: str) -> str:
    """Typographic characters as their plain forms; whatever then is not printable ASCII is dropped."""
    plain = text.translate(
        str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})
    )
    allowed = {*ASCII, "\n"}
    return "".join(c for c in unicodedata.normalize("NFKD", plain.expandtabs()) if c in allowed)


def _python_docs(data_dir: Path, download: bool) -> Corpus:  # noqa: ARG001
    """90 % train, 5 % valid, 5 % test, in the order of the topics' names."""
    import platform
    from pydoc_data.topics import topics

    text = plain_ascii("\n".join(topics[name] for name in sorted(topics)))
    return Corpus(
        parts=_contiguous(text),
        alphabet=["\n", *ASCII],
        words=False,
        source="the Python language reference (pydoc_data.topics)",
        licence="PSF",
        provenance=f"embedded in Python {platform.python_version()}; the text differs between versions",
    )


def _contiguous(text: str) -> dict[str, list[str]]:
    symbols = list(text)
    first, second = len(symbols) * 90 // 100, len(symbols) * 95 // 100
    return {"train": symbols[:first], "valid": symbols[first:second], "test": symbols[second:]}


def _tiny_shakespeare(data_dir: Path, download: bool) -> Corpus:
    text = read(sources.TINY_SHAKESPEARE, data_dir, download).decode()
    return Corpus(
        parts=_contiguous(text),
        alphabet=sorted(set(text)),
        words=False,
        source="Karpathy 2015, tiny Shakespeare",
        licence="public domain text",
        provenance="original file, by its digest",
    )


def _ptb(data_dir: Path, download: bool) -> dict[str, list[str]]:
    return {
        split: [line.strip() for line in read(file, data_dir, download).decode().splitlines() if line.strip()]
        for split, file in sources.PTB.items()
    }


def _ptb_char(data_dir: Path, download: bool) -> Corpus:
    """The word-level text with `_` for a space; a line ends in a newline."""
    lines = _ptb(data_dir, download)
    parts = {
        split: list("".join(f"{line}\n" for line in part).replace(" ", "_")) for split, part in lines.items()
    }
    return _ptb_corpus(parts, sorted(set(parts["train"])), words=False)


def _ptb_word(data_dir: Path, download: bool) -> Corpus:
    lines = _ptb(data_dir, download)
    parts = {split: " <eos> ".join([*part, ""]).split() for split, part in lines.items()}
    return _ptb_corpus(parts, sorted(set(parts["train"])), words=True)


def _ptb_corpus(parts: dict[str, list[str]], alphabet: list[str], words: bool) -> Corpus:
    return Corpus(
        parts=parts,
        alphabet=alphabet,
        words=words,
        source="Penn Treebank, Mikolov's preprocessing",
        licence="LDC; this derived text is customary in research",
        provenance="original files, by their digests",
    )


_READERS = {
    "python_docs": _python_docs,
    "tiny_shakespeare": _tiny_shakespeare,
    "ptb_char": _ptb_char,
    "ptb_word": _ptb_word,
}
