"""The files of IAM-OnDB: where they lie, and the strokes in them. Imports no torch."""

import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from metalearn.registry import UserError

FOLDER = "iam_online"
ARCHIVE, UNPACKED = "lineStrokes-all.tar.gz", "lineStrokes"
LISTS = ("trainset.txt", "testset_v.txt", "testset_t.txt", "testset_f.txt")  # of its benchmark task 1
NAME = re.compile(r"([a-z]\d{2}-\d{3,4}[a-z]?)-\d{2}\.xml")  # of a line; its form in brackets
LARGEST = 1 << 22  # bytes of a line's file; the real ones have a hundredth of that
MOST = 50_000  # files of lines
FARTHEST = 1e6  # a coordinate
REMEDY = (
    "IAM-OnDB is given to those who register at fki.tic.heia-fr.ch (IAM On-Line Handwriting Database) "
    f"and may not be passed on, so it is not downloaded: get {ARCHIVE} and the lists of task 1 there and put "
    f"{ARCHIVE} (or the folder {UNPACKED}/ that it holds) and {', '.join(LISTS)}"
)


class Line(NamedTuple):
    """A line of writing: where the pen was, y downwards, and whether it was lifted after each point."""

    name: str  # of its file, without ending
    points: list[tuple[float, float, float]]


def strokes_of(data_dir: Path) -> Path | None:
    """The archive, or the folder that it holds; None if neither is there."""
    folder = data_dir / FOLDER
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE
    return folder / UNPACKED if (folder / UNPACKED).is_dir() else None


def lists_of(data_dir: Path) -> list[Path] | None:
    """The four lists of forms, beside the strokes or in task1/; None unless all are there."""
    for folder in (data_dir / FOLDER, data_dir / FOLDER / "task1"):
        paths = [folder / name for name in LISTS]
        if all(path.is_file() for path in paths):
            return paths
    return None


def availability(data_dir: Path) -> str:
    """in data_dir, or missing and what to do about it."""
    if strokes_of(data_dir) and lists_of(data_dir):
        return "in data_dir"
    return f"missing: {REMEDY} into {data_dir / FOLDER}"


def found(data_dir: Path) -> tuple[Path, list[Path]]:
    """Strokes and lists. Raises UserError that says how to come by them."""
    strokes, lists = strokes_of(data_dir), lists_of(data_dir)
    if strokes is None or lists is None:
        lacking = "strokes" if strokes is None else "lists"
        raise UserError(
            f"task iam: no {lacking} in {data_dir / FOLDER}; {REMEDY} there, or name the folder that has "
            f"{FOLDER}/ by data_dir=PATH or METALEARN_DATA_DIR"
        )
    return strokes, lists


def forms(path: Path) -> list[str]:
    """The forms that a list names, one a line."""
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a list of forms ({error}); put a good copy there"
        ) from None


def digests(strokes: Path) -> list[bytes]:
    """What changes if any of the strokes do."""
    if strokes.is_file():
        with strokes.open("rb") as archive:
            return [hashlib.file_digest(archive, "sha256").digest()]
    return [name.encode() + hashlib.sha256(content).digest() for name, content in _contents(strokes)]


def lines(strokes: Path) -> list[Line]:
    """All lines in the order of their names. Raises UserError for a file that is none."""
    return sorted(Line(name, _points(name, content)) for name, content in _contents(strokes))


def _contents(strokes: Path) -> Iterator[tuple[str, bytes]]:
    """Name and text of each line's file; whatever has another name is passed over. Nothing is unpacked."""
    reader = _of_archive(strokes) if strokes.is_file() else _of_folder(strokes)
    names: set[str] = set()
    for name, content in reader:
        if name in names or len(names) == MOST:
            raise UserError(f"{strokes}: has {name} twice, or more than {MOST} lines; put a good copy there")
        names.add(name)
        yield name.removesuffix(".xml"), content


def _of_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                file = archive.extractfile(member) if member.isfile() and NAME.fullmatch(name) else None
                if file is not None:
                    yield name, _within(file.read(LARGEST + 1), name)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: does not unpack ({error}); put a good copy there") from None


def _of_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*.xml")):
        if NAME.fullmatch(file.name) and file.is_file():
            with file.open("rb") as opened:
                yield file.name, _within(opened.read(LARGEST + 1), file.name)


def _within(content: bytes, name: str) -> bytes:
    if len(content) > LARGEST:
        raise UserError(f"{name}: is larger than {LARGEST} bytes, no line of IAM-OnDB; put a good copy there")
    return content


def _points(name: str, content: bytes) -> list[tuple[float, float, float]]:
    """The points of all strokes, one after another."""
    points: list[tuple[float, float, float]] = []
    try:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("it declares entities, which no file of IAM-OnDB does")
        for stroke in ElementTree.fromstring(content).iterfind("StrokeSet/Stroke"):
            drawn = [(float(p.attrib["x"]), float(p.attrib["y"]), 0.0) for p in stroke.iterfind("Point")]
            points += [*drawn[:-1], *((x, y, 1.0) for x, y, _ in drawn[-1:])]
        if not all(abs(x) <= FARTHEST and abs(y) <= FARTHEST for x, y, _ in points):
            raise ValueError("a coordinate is out of bounds")
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{name}.xml: is no line of IAM-OnDB ({error!r}); put a good copy there") from None
    return points
