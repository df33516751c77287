"""What was chosen among several runs, and from what."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.registry import UserError


class Selection(NamedTuple):
    """One selection of a plan; `report` is its selection.json, None where none was made."""

    stage: str
    path: Path
    report: dict[str, Any] | None


def made(stage: str, path: Path) -> Selection:
    """Read a selection's folder. Raises UserError for a broken file."""
    file = path / "selection.json"
    if not file.exists():
        return Selection(stage, path, None)
    try:
        return Selection(stage, path, json.loads(file.read_text("utf-8")))
    except ValueError as error:
        raise UserError(f"{file}: is broken: {error}; delete it, it is made again") from None
