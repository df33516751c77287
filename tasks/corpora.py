"""From files, or from what is installed, to texts cut into symbols."""

import io
import platform
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from metalearn.registry import UserError
from tasks import files, sources

PRINTABLE = ["\n", *(chr(code) for code in range(32, 127))]  # 96 symbols, whatever the text holds
TYPOGRAPHIC = {
    "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "\u00a0": " ", "\t": "    ",
}  # fmt: skip

ENWIK8_COUNTS = {"symbols": 205, "bytes": 100_000_000}
WIKITEXT2_COUNTS = {"words": 33_278, "train": 2_088_628, "valid": 217_646, "test": 245_569}


Content = TypeVar("Content", str, bytes)


class Corpus(NamedTuple):
    """A text as its reader gives it."""

    parts: Mapping[str, Sequence[str] | bytes]  # symbols by split: train, valid, test
    alphabet: list[str]  # a byte is the character of its number
    words: bool  # symbols are words, else characters, or bytes where parts are
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


def _contiguous(text: Content) -> dict[str, Content]:
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


def _enwik8(data_dir: Path, download: bool) -> Corpus:
    """Bytes as they are, in 90, 5 and 5 million (Ha, Dai and Le 2017, section 4.4)."""
    content = files.read(sources.ENWIK8, data_dir, download)
    alphabet = [chr(code) for code in range(256) if bytes((code,)) in content]
    found = {"symbols": len(alphabet), "bytes": len(content)}
    if found != ENWIK8_COUNTS:
        raise UserError(
            f"enwik8: got {found}, must be {ENWIK8_COUNTS}: this is not the file of the Hutter prize; "
            "delete it and put a good copy there"
        )
    return Corpus(
        parts=_contiguous(content),
        alphabet=alphabet,
        words=False,
        source="Hutter 2006, the human knowledge compression contest: English Wikipedia of March 3, 2006",
        licence="Creative Commons Attribution-ShareAlike and GNU Free Documentation License",
        provenance="original bytes, verified by digest and by their counts",
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


def _wikitext2(data_dir: Path, download: bool) -> Corpus:
    """Words, `<eos>` ends a line, also an empty one; the alphabet is in the order of first appearance."""
    parts = {
        split: [word for line in _lines(content) for word in (*line.split(), "<eos>")]
        for split, content in _wikitext2_contents(data_dir, download).items()
    }
    alphabet = list(dict.fromkeys(parts["train"]))
    found = {"words": len(alphabet)} | {split: len(part) for split, part in parts.items()}
    if found != WIKITEXT2_COUNTS:
        raise UserError(
            f"wikitext2: got {found}, must be {WIKITEXT2_COUNTS} with an <eos> for each line: these are not "
            "the tokens of Merity et al. 2016; delete the files and put good copies there"
        )
    return Corpus(
        parts=dict(parts),
        alphabet=alphabet,
        words=True,
        source="Merity et al. 2016, Pointer Sentinel Mixture Models: WikiText-2",
        licence="Creative Commons Attribution-ShareAlike",
        provenance="original tokens, verified by digest and by their counts",
    )


def _lines(content: bytes) -> list[str]:
    """Cut at newlines alone: the text has other characters that `str.splitlines` would cut at."""
    return content.decode("utf-8").removesuffix("\n").split("\n")


def _wikitext2_contents(data_dir: Path, download: bool) -> dict[str, bytes]:
    """The three files, or what the archive has in their place."""
    packed = not files.missing([sources.WIKITEXT2_ARCHIVE], data_dir)
    if not packed and not files.missing(list(sources.WIKITEXT2.values()), data_dir):
        return {split: files.read(file, data_dir, download) for split, file in sources.WIKITEXT2.items()}
    content = files.read(sources.WIKITEXT2_ARCHIVE, data_dir, download)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {split: archive.read(file.places[0]) for split, file in sources.WIKITEXT2.items()}


_READERS: dict[str, Callable[[Path, bool], Corpus]] = {
    "python_docs": _python_docs,
    "tiny_shakespeare": _tiny_shakespeare,
    "enwik8": _enwik8,
    "ptb_char": _ptb_char,
    "ptb_word": _ptb_word,
    "wikitext2": _wikitext2,
}
