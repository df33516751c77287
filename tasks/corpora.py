"""From files, or from what is installed, to texts cut into symbols."""

import platform
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.registry import UserError
from tasks import files, sources

PRINTABLE = ["\n", *(chr(code) for code in range(32, 127))]  # 96 symbols, whatever the text holds
TYPOGRAPHIC = {
    "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "\u00a0": " ", "\t": "    ",
}  # fmt: skip


class Corpus(NamedTuple):
    """A text as its reader gives it."""

    parts: dict[str, Sequence[str]]  # symbols by split: train, valid, test
    alphabet: list[str]
    words: bool  # symbols are words, else characters
    source: str
    licence: str
    provenance: str


def read(name: str, data_dir: Path, download: bool) -> Corpus:
    """The corpus called `name`. Raises UserError for files that are missing or altered."""
    return _READERS[name](data_dir, download)


def plain(text: str) -> str:
    """`text` in the alphabet PRINTABLE.

    Typographic characters become their plain forms, accents go (NFKD), every kind of line end is a newline;
    whatever is left outside the alphabet is dropped.
    """
    lines = "\n".join(text.splitlines()) + ("\n" if text.endswith(("\n", "\r")) else "")
    decomposed = unicodedata.normalize("NFKD", lines.translate(str.maketrans(TYPOGRAPHIC)))
    allowed = set(PRINTABLE)
    return "".join(character for character in decomposed if character in allowed)


def distinct_paragraphs(texts: Iterable[str]) -> str:
    """All paragraphs in order without later repeats: topics quote each other, also across splits."""
    paragraphs = (part.strip("\n") for text in texts for part in text.split("\n\n"))
    kept = {" ".join(part.split()): part for part in reversed(list(paragraphs)) if part.strip()}
    return "\n\n".join(reversed(kept.values())) + "\n"


def _python_docs(data_dir: Path, download: bool) -> Corpus:  # noqa: ARG001
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "python_docs: this Python has no pydoc_data; install its standard library in full, or choose "
            "task=tiny_shakespeare"
        ) from None
    text = distinct_paragraphs(plain(topics[name]) for name in sorted(topics))
    return Corpus(
        parts=_contiguous(text),
        alphabet=PRINTABLE,
        words=False,
        source="The Python Language Reference, as pydoc_data.topics of the standard library",
        licence="PSF License Version 2",
        provenance=f"embedded in Python {platform.python_version()}, plain ASCII, each paragraph once; "
        "figures of different Python versions are not comparable",
    )


def _contiguous(text: str) -> dict[str, Sequence[str]]:
    first, second = len(text) * 90 // 100, len(text) * 95 // 100
    return {"train": text[:first], "valid": text[first:second], "test": text[second:]}


def _tiny_shakespeare(data_dir: Path, download: bool) -> Corpus:
    text = files.read(sources.TINY_SHAKESPEARE, data_dir, download).decode("ascii")
    return Corpus(
        parts=_contiguous(text),
        alphabet=sorted(set(text)),
        words=False,
        source="Karpathy 2015, char-rnn: tiny Shakespeare",
        licence="public domain",
        provenance="original file, verified by digest",
    )


def _ptb_lines(data_dir: Path, download: bool) -> dict[str, list[str]]:
    return {
        split: [line.strip() for line in files.read(file, data_dir, download).decode("ascii").splitlines()]
        for split, file in sources.PTB.items()
    }


def _ptb_char(data_dir: Path, download: bool) -> Corpus:
    """`_` for a space, a newline ends a line: 5,017k, 393k and 442k characters (Mikolov et al. 2012)."""
    parts: dict[str, Sequence[str]] = {
        split: "".join(f"{line}\n" for line in lines).replace(" ", "_")
        for split, lines in _ptb_lines(data_dir, download).items()
    }
    return _ptb(parts, words=False)


def _ptb_word(data_dir: Path, download: bool) -> Corpus:
    """Words, `<eos>` ends a line."""
    parts: dict[str, Sequence[str]] = {
        split: [word for line in lines for word in (*line.split(), "<eos>")]
        for split, lines in _ptb_lines(data_dir, download).items()
    }
    return _ptb(parts, words=True)


def _ptb(parts: dict[str, Sequence[str]], words: bool) -> Corpus:
    return Corpus(
        parts=parts,
        alphabet=sorted(set(parts["train"])),
        words=words,
        source="Penn Treebank (Marcus et al. 1993), preprocessed by Mikolov",
        licence="LDC user agreement; this excerpt circulates for research",
        provenance="ptb.train.txt, ptb.valid.txt and ptb.test.txt, verified by digest",
    )


_READERS: dict[str, Callable[[Path, bool], Corpus]] = {
    "python_docs": _python_docs,
    "tiny_shakespeare": _tiny_shakespeare,
    "ptb_char": _ptb_char,
    "ptb_word": _ptb_word,
}
