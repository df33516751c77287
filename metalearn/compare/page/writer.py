"""Template, style, scripts and data become one file."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metalearn.compare.model import Comparison, Picture
from metalearn.compare.page.contents import contents
from metalearn.compare.pairs import RULE
from metalearn.registry import UserError
from metalearn.report.inline import inline

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("elements.js", "state.js", "sorting.js", "table.js", "scales.js", "chart.js", "curves.js",
           "differences.js", "page.js")  # fmt: skip
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write(comparison: Comparison, path: Path) -> Path:
    """Write the comparison as one HTML file that needs nothing but itself. Returns its path."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    path.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _script()
    text = environment.get_template("page.html.j2").render(
        comparison=comparison,
        rule=RULE,
        runs=sum(len(group.entries) for group in comparison.groups),
        pictures=[_drawn(picture, place) for place, picture in enumerate(comparison.pictures)],
        style=(ASSETS / "page.css").read_text("utf-8"),
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=embedded(contents(comparison, path.parent)),
    )
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    temporary.write_text(text, "utf-8", newline="\n")
    temporary.replace(path)
    return path


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that no label can end: it holds no `<`, `>` or `&`."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign, escape in ESCAPES.items():  # str.translate takes ten times as long
        text = text.replace(sign, escape)
    return text


def _script() -> str:
    parts = "".join((ASSETS / name).read_text("utf-8") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _drawn(picture: Picture, place: int) -> dict[str, str]:
    """A picture that is no SVG is told in words: one of many must not cost the page."""
    try:
        svg, lacking = inline(picture.svg, f"picture-{place}", picture.title), ""
    except UserError as error:
        svg, lacking = "", str(error)
    return {"title": picture.title, "caption": picture.caption, "svg": svg, "lacking": lacking}
