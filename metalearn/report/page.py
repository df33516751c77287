"""A document as Markdown and as one self-contained HTML page."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.report.drawings import Drawing
from metalearn.report.figures import VARIABLES
from metalearn.report.inline import inline

TEMPLATES = Path(__file__).parent / "templates"


class Link(NamedTuple):
    """A cell that leads to a folder, relative to the page."""

    text: str
    href: str


Cell = str | Link


class Words(NamedTuple):
    """A paragraph."""

    text: str
    kind: str = "words"


class Statements(NamedTuple):
    """Claims with their verdicts: (better | worse | unclear | none, subject, sentence)."""

    items: Sequence[tuple[str, str, str]]
    kind: str = "statements"


class Grid(NamedTuple):
    """A table; `numeric` columns stand on their right edge. `folded`: what to click to see it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    numeric: frozenset[int] = frozenset()
    folded: str = ""
    kind: str = "grid"


class Gallery(NamedTuple):
    """Pictures beside each other."""

    drawings: Sequence[Drawing]
    kind: str = "gallery"


class Command(NamedTuple):
    """Lines for a terminal."""

    text: str
    kind: str = "command"


Block = Words | Statements | Grid | Gallery | Command


class Section(NamedTuple):
    """A part of the page that its contents list leads to."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return slug(self.title)


class Document(NamedTuple):
    """A page. `notices` are what a reader must see first."""

    title: str
    lead: str
    notices: Sequence[str]
    sections: Sequence[Section]


def slug(title: str) -> str:
    """A title as part of a file name or an anchor."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"


def write(document: Document, folder: Path, stem: str, html: bool = True) -> Path:
    """Write <stem>.md, the pictures that it shows and, with `html`, <stem>.html. Returns the page's path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _markdown_cell
    pictures = _pictures(document)
    files = {place: f"{stem}_figures/{name}.svg" for place, (name, _) in pictures.items()}
    for place, (_, drawing) in pictures.items():
        (folder / files[place]).parent.mkdir(exist_ok=True)
        (folder / files[place]).write_text(drawing.svg, "utf-8")
    inlined = {
        place: inline(drawing.svg, f"figure-{name}", drawing.title, VARIABLES if drawing.themed else None)
        for place, (name, drawing) in (pictures.items() if html else ())
    }
    pages = {"md": files} | ({"html": inlined} if html else {})
    for suffix, images in pages.items():
        text = environment.get_template(f"page.{suffix}.jinja").render(document=document, images=images)
        _replace(folder / f"{stem}.{suffix}", text)
    return folder / f"{stem}.{'html' if html else 'md'}"


def _pictures(document: Document) -> dict[tuple[int, int, int], tuple[str, Drawing]]:
    """Every picture by its place (section, block, position), with a name that no other has."""
    places = [
        ((i, j, k), drawing)
        for i, section in enumerate(document.sections)
        for j, block in enumerate(section.blocks)
        if isinstance(block, Gallery)
        for k, drawing in enumerate(block.drawings)
        if drawing.svg
    ]
    return {
        place: (f"{number:02}-{slug(drawing.title)[:40]}", drawing)
        for number, (place, drawing) in enumerate(places, start=1)
    }


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f"[{cell.text}]({cell.href.replace(' ', '%20')})"
    return cell.replace("|", "\\|").replace("\n", " ")


def _replace(path: Path, text: str) -> None:
    """A reader never finds half a page."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
