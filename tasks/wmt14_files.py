"""WMT'14 English to French: where its text is, and its sentences one after another. Imports no torch.

Under data_dir/wmt14_en_fr either {train,valid,test}.{en,fr}, one sentence a line (also .gz), or the archives
of statmt.org, packed: training-parallel-{europarl-v7,commoncrawl,un,nc-v9}.tgz, training-giga-fren.tar,
dev.tgz and test-full.tgz. Their members are known by the names in ARCHIVED, which are from memory.
"""

import contextlib
import gzip
import hashlib
import html
import io
import re
import tarfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO, NamedTuple

from metalearn.registry import UserError

FOLDER = "wmt14_en_fr"
SPLITS = ("train", "valid", "test")
ARCHIVED = {  # by split: the archives, and what their English members match; French ones follow from them
    "train": (
        [
            "training-parallel-europarl-v7.tgz",
            "training-parallel-commoncrawl.tgz",
            "training-parallel-un.tgz",
            "training-parallel-nc-v9.tgz",
            "training-giga-fren.tar",
        ],
        r"(\.fr-en\.en|giga-fren\.release2\.fixed\.en\.gz)$",
    ),
    "valid": (["dev.tgz"], r"newstest201[23]\.en$"),
    "test": (["test-full.tgz"], r"newstest2014-fren-src\.en\.sgm$"),
}
_SEGMENT = re.compile(r"<seg[^>]*>(.*?)</seg>", re.IGNORECASE)


class File(NamedTuple):
    """A text, by itself or as a member of an archive."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return self.member or self.path.name

    def sentences(self) -> Iterator[str]:
        """One a line, without white space around; of .sgm, one a segment."""
        with self._open() as raw:
            lines = (line.strip() for line in io.TextIOWrapper(raw, "utf-8", newline="\n"))
            if ".sgm" in self.name:
                yield from (html.unescape(found[1].strip()) for found in map(_SEGMENT.search, lines) if found)
            else:
                yield from lines

    @contextlib.contextmanager
    def _open(self) -> Iterator[IO[bytes] | gzip.GzipFile]:
        with contextlib.ExitStack() as stack:
            if self.member:
                raw = stack.enter_context(tarfile.open(self.path)).extractfile(self.member)
                assert raw is not None
            else:
                raw = stack.enter_context(self.path.open("rb"))
            yield stack.enter_context(gzip.open(raw)) if self.name.endswith(".gz") else raw


Files = list[tuple[File, File]]


def missing(data_dir: Path) -> list[str]:
    """What is lacking for a task, by names under data_dir; nothing if all is there."""
    folder, lacking = data_dir / FOLDER, []
    for split in SPLITS:
        archives = ARCHIVED[split][0]
        plain = all(_plain(folder, split, language) for language in ("en", "fr"))
        if not plain and not all((folder / name).is_file() for name in archives):
            lacking.append(f"{FOLDER}/{split}.en and .fr (or {', '.join(archives)})")
    return lacking


def _plain(folder: Path, split: str, language: str) -> File | None:
    paths = (folder / f"{split}.{language}{suffix}" for suffix in ("", ".gz"))
    return next((File(path) for path in paths if path.is_file()), None)


def files(folder: Path, split: str) -> Files:
    """The two sides of each part of a split."""
    source, target = _plain(folder, split, "en"), _plain(folder, split, "fr")
    if source and target:
        return [(source, target)]
    archives, pattern = ARCHIVED[split]
    found: Files = []
    for name in archives:
        with tarfile.open(folder / name) as archive:
            members = archive.getnames()
        pairs = [(member, _french(member)) for member in members if re.search(pattern, member)]
        found += [(File(folder / name, a), File(folder / name, b)) for a, b in sorted(pairs) if b in members]
        if not any(b in members for _, b in pairs):
            raise UserError(
                f"{folder / name}: has no pair of members like {pattern}; unpack it and put {split}.en and "
                f"{split}.fr beside it"
            )
    return found


def _french(member: str) -> str:
    """The French side of an English member."""
    return re.sub(r"\.en(\.gz|\.sgm)?$", r".fr\1", member.replace("-src.", "-ref."))


def pairs(files: Files, keep_empty: bool) -> Iterator[tuple[str, str]]:
    """All pairs. Raises UserError if the sides are not of one length."""
    for source, target in files:
        for number, (a, b) in enumerate(zip_longest(source.sentences(), target.sentences()), 1):
            if a is None or b is None:
                longer, shorter = (target, source) if a is None else (source, target)
                raise UserError(
                    f"{shorter.path} {shorter.member}: ends before line {number}, which "
                    f"{longer.path} {longer.member} has; line k of one must translate line k of the other"
                )
            if keep_empty or (a and b):
                yield a, b


def identity(files: dict[str, Files]) -> str:
    """Changes with the files: by names, sizes and times, for to read them all takes long."""
    total = hashlib.sha256()
    for split, pairs in files.items():
        for file in (file for pair in pairs for file in pair):
            stat = file.path.stat()
            total.update(f"{split} {file.path} {file.member} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return total.hexdigest()
