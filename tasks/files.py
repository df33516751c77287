"""Data files: found under data_dir or downloaded, and verified before anything reads them."""

import contextlib
import gzip
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.registry import UserError

TIMEOUT = 20  # seconds that a download may stay silent


class DataFile(NamedTuple):
    """One file by its content, wherever it lies."""

    digest: str  # "sha256:..." or "md5:..." of the content, after gunzip if the name ends in .gz
    places: tuple[str, ...]  # paths under data_dir, the first existing one is read
    url: str | None = None  # the usual source; saved at the first place


def find(file: DataFile, data_dir: Path) -> Path | None:
    """Where the file lies under `data_dir`, or None."""
    return next((data_dir / place for place in file.places if (data_dir / place).is_file()), None)


def read(file: DataFile, data_dir: Path, download: bool) -> bytes:
    """The verified content. Raises UserError that names the file, the digests and the remedy."""
    path = find(file, data_dir)
    if path is None:
        path = _download(file, data_dir, download)
    try:
        return _verified(path.read_bytes(), file, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); mend it or delete it to have it downloaded"
        ) from None


def digest_of(content: bytes, like: str) -> str:
    """The content's digest by the algorithm that `like` names before its colon."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def _verified(raw: bytes, file: DataFile, path: Path) -> bytes:
    try:
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        found = digest_of(content, file.digest)
    except (OSError, EOFError, ValueError) as error:
        found, content = f"none, it does not unpack ({error})", b""
    if found != file.digest:
        raise UserError(
            f"{path}: truncated or altered: expected {file.digest}, found {found} ({len(raw)} bytes); "
            "delete it and put a good copy there, or let it be downloaded (download=true)"
        )
    return content


def _download(file: DataFile, data_dir: Path, allowed: bool) -> Path:
    looked = " or ".join(str(data_dir / place) for place in file.places)
    remedy = "put the file there, or name its folder by data_dir=PATH or METALEARN_DATA_DIR"
    if not allowed or file.url is None:
        reason = "download=false" if file.url else "it has no source to download from"
        raise UserError(f"no file {looked}, and {reason}; {remedy}")
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as answer:
            raw = answer.read()
    except OSError as error:
        raise UserError(f"no file {looked}, and {file.url} did not answer ({error}); {remedy}") from None
    path = data_dir / file.places[0]
    _verified(raw, file, path)
    with replacing(path) as temporary:
        temporary.write_bytes(raw)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error}); name another folder by data_dir=PATH"
        ) from None
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def cache_dir() -> Path:
    """Where decoded data are kept: METALEARN_CACHE_DIR, else metalearn/ in the user's cache folder."""
    named = os.environ.get("METALEARN_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (Path(base) if base else Path("~/.cache").expanduser()) / "metalearn"


def missing(files: Sequence[DataFile], data_dir: Path) -> list[DataFile]:
    """The files that do not lie under `data_dir`."""
    return [file for file in files if find(file, data_dir) is None]
