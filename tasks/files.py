"""Data files: found or downloaded, and verified before anything reads them."""

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.registry import UserError

TIMEOUT = 10  # seconds that a download may stay silent
LARGEST = 1 << 28  # bytes that a packed file may unpack to
AGENT = {"User-Agent": "metalearn"}  # some hosts refuse the name that urllib gives itself


class DataFile(NamedTuple):
    """One file by its content, wherever it lies."""

    digest: str  # "sha256:..." or "md5:..." of the content, unpacked where the name ends in .gz (not .tar.gz)
    places: tuple[str, ...]  # paths under data_dir, the first existing one is read
    url: str | None = None  # the usual source; saved at the first place
    instead: str = ""  # what else would do, for the message that the file is missing
    member: str | None = None  # what is the content where the name ends in .zip; None: the archive itself


def cache_dir() -> Path:
    """Where decoded data are kept: METALEARN_CACHE_DIR, else metalearn/ in the user's cache folder."""
    named, base = os.environ.get("METALEARN_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path(base or Path("~/.cache").expanduser()) / "metalearn"


def find(file: DataFile, data_dir: Path) -> Path | None:
    """Where the file lies under `data_dir`, or among earlier downloads in the cache; None if nowhere."""
    paths = (folder / place for folder in (data_dir, cache_dir()) for place in file.places)
    return next((path for path in paths if path.is_file()), None)


def missing(files: Sequence[DataFile], data_dir: Path) -> list[DataFile]:
    """The files that `find` does not find."""
    return [file for file in files if find(file, data_dir) is None]


def read(file: DataFile, data_dir: Path, download: bool) -> bytes:
    """The verified content. Raises UserError that names the file, the digests and the remedy."""
    path = find(file, data_dir)
    if path is None:
        return _download(file, data_dir, download)
    try:
        return _verified(path.read_bytes(), file, str(path))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error}); mend its permissions or put a copy there"
        ) from None


def digest_of(content: bytes, like: str) -> str:
    """The content's digest by the algorithm that `like` names before its colon."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def _verified(raw: bytes, file: DataFile, origin: str) -> bytes:
    """What `raw` unpacks to. Raises UserError if that is not the file."""
    try:
        content = _unpacked(raw, file, origin)
        found = digest_of(content, file.digest)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError) as error:
        found, content = f"none, for it does not unpack ({error})", b""
    if found != file.digest:
        raise UserError(
            f"{origin}: truncated or altered: expected {file.digest}, found {found} ({len(raw)} bytes); "
            "delete it and put a good copy there, or let it be downloaded (download=true)"
        )
    return content


def _unpacked(raw: bytes, file: DataFile, origin: str) -> bytes:
    if origin.endswith(".zip") and file.member is not None:
        return _unzip(raw, file.member)
    return _gunzip(raw) if origin.endswith(".gz") and not origin.endswith(".tar.gz") else raw


def _unzip(raw: bytes, member: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, archive.open(member) as packed:
        content = packed.read(LARGEST)
        if packed.read(1):
            raise zipfile.BadZipFile("too large")
    return content


def _gunzip(raw: bytes) -> bytes:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    content = unpacker.decompress(raw, LARGEST)
    if not unpacker.eof or unpacker.unused_data:
        raise gzip.BadGzipFile("cut off, too large, or followed by other bytes")
    return content


def _download(file: DataFile, data_dir: Path, allowed: bool) -> bytes:
    looked = " or ".join(str(data_dir / place) for place in file.places)
    remedy = (
        f"put it there{file.instead}, or name the folder that has it by data_dir=PATH or METALEARN_DATA_DIR"
    )
    if not allowed or file.url is None:
        reason = "download=false forbids to fetch it" if file.url else "it has no source to download from"
        raise UserError(f"no file {looked}, and {reason}; {remedy}")
    try:
        request = urllib.request.Request(file.url, headers=AGENT)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            raw = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"no file {looked}, and {file.url} did not answer ({error}); {remedy}") from None
    content = _verified(raw, file, file.url)
    _keep(raw, file.places[0], data_dir)
    return content


def _keep(raw: bytes, place: str, data_dir: Path) -> None:
    """Save a download under `data_dir`, or in the cache where that cannot be written."""
    for folder in (data_dir, cache_dir()):
        with contextlib.suppress(OSError), replacing(folder / place) as temporary:
            temporary.write_bytes(raw)
            return


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        with Path(name).open("rb") as written:
            os.fsync(written.fileno())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
