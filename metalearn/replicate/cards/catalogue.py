"""conf/published: every row of every results table of the papers, read and checked."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

import yaml

from metalearn.compose import CONF
from metalearn.registry import UserError, closest
from metalearn.report.claims import published

PUBLISHED = CONF / "published"
NEAREST = 8  # names that a mistake is answered by


@dataclass
class RowOptions:
    """One row as the paper prints it, and where ours is."""

    value: float | None  # null: the paper has no number
    spread: float | None = None  # its printed ±; null: none printed
    others: dict[str, float] = field(default_factory=dict)  # the row's values of other metrics
    plan: str | None = None  # the recipe with tiers that replicates it; null: it is only cited
    contender: str | None = None  # the row of that plan's table
    over: list[str] = field(default_factory=list)  # contenders of that plan that the paper puts it ahead of
    cited: str | None = None  # whose row it is, where it is not the authors' own
    printed: dict[str, str] = field(default_factory=dict)  # what else the table says of it


@dataclass
class TableOptions:
    """A table, or the panel of a figure."""

    title: str
    metric: str
    unit: str
    goal: str  # min or max
    scale: str  # published: printed numbers; reading: read off a figure
    rows: dict[str, RowOptions]
    reading: float | None = None  # relative tolerance of what was read off; null: the order alone is known


@dataclass
class PaperOptions:
    """The results of one paper."""

    paper: str
    title: str
    tables: dict[str, TableOptions]


class Entry(NamedTuple):
    """A row with its place."""

    family: str
    paper: PaperOptions
    key: str  # of the table
    table: TableOptions
    name: str
    row: RowOptions

    @property
    def place(self) -> str:
        return f"{self.family}/{self.key}"

    @property
    def spread(self) -> float:
        """What the published value may be off by: its ±, or the tolerance of reading it."""
        if self.row.spread is not None or self.table.reading is None or self.row.value is None:
            return self.row.spread or 0.0
        return abs(self.table.reading * self.row.value)

    @property
    def printed(self) -> str:
        """The published value with its ±, or how exactly it was read off a figure; - where there is none."""
        text = published({"value": self.row.value, "spread": self.row.spread, "unit": ""})
        if self.table.reading is None or self.row.value is None:
            return text
        return f"{text} ± {100 * self.table.reading:g} % (read)"


def read(path: Path) -> PaperOptions:
    """One family's file. Raises UserError that names the key that is wrong."""
    try:
        values = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}") from None
    paper = _made(PaperOptions, values, path.name)
    for key, table in paper.tables.items():
        place = f"{path.name}: tables.{key}"
        paper.tables[key] = options = _made(TableOptions, table, place)
        for option, allowed in (("goal", ("min", "max")), ("scale", ("published", "reading"))):
            if (value := getattr(options, option)) not in allowed:
                raise UserError(f"{place}.{option}: got {value!r}, must be one of {', '.join(allowed)}")
        for name, row in options.rows.items():
            options.rows[name] = _made(RowOptions, row, f"{place}.rows.{name}")
            _check(f"{place}.rows.{name}", options.rows[name])
    return paper


def _made(schema: type, values: Any, place: str) -> Any:
    """`values` as a dataclass; OmegaConf would take seconds for hundreds of rows. Raises UserError."""
    fields = {one.name: one for one in dataclasses.fields(schema)}
    if not isinstance(values, dict):
        raise UserError(f"{place}: got {values!r}, must be a group with {', '.join(fields)}")
    for key, value in values.items():
        if key not in fields:
            allowed = ", ".join(closest(str(key), list(fields)))
            raise UserError(f"{place}.{key}: no such option; choose one of: {allowed}")
        if not _fits(value, fields[key].type):
            raise UserError(f"{place}.{key}: got {value!r}, must be {_words(fields[key].type)}")
    lacking = [
        name
        for name, one in fields.items()
        if name not in values and one.default is one.default_factory is dataclasses.MISSING
    ]
    if lacking:
        raise UserError(f"{place}.{lacking[0]}: has no value")
    return schema(**values)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(part, get_args(kind)[0]) for part in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(part, get_args(kind)[1]) for part in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, dict if dataclasses.is_dataclass(kind) else kind)


def _words(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return name.replace("str", "text").replace("float", "number").replace("None", "null")


def _check(place: str, row: RowOptions) -> None:
    if (row.plan is None) != (row.contender is None):
        raise UserError(f"{place}: must have both plan and contender, or neither")
    if row.plan is None and not row.cited:
        raise UserError(f"{place}: must have a plan, or say in `cited` whose it is")
    if row.plan is None and row.over:
        raise UserError(f"{place}.over: needs a plan whose contenders are compared")
    if row.spread is not None and row.spread < 0:
        raise UserError(f"{place}.spread: got {row.spread}, must be at least 0")
    if row.contender in row.over:
        raise UserError(f"{place}.over: {row.contender!r} cannot be ahead of itself")


def entries(folder: Path = PUBLISHED) -> list[Entry]:
    """All rows of all families, in the order of the files. Raises UserError."""
    return [entry for path in sorted(folder.glob("*.yaml")) for entry in _entries(path)]


def _entries(path: Path) -> Iterator[Entry]:
    paper = read(path)
    for key, table in paper.tables.items():
        for name, row in table.rows.items():
            yield Entry(path.stem, paper, key, table, name, row)


def chosen(everything: list[Entry], names: list[str]) -> list[Entry]:
    """The rows of the families, tables (family/table), papers or plans that are named; all for no name.

    Raises UserError for a name that fits none.
    """
    if not names:
        return everything
    found: dict[int, Entry] = {}
    for name in names:
        fitting = {number: entry for number, entry in enumerate(everything) if name in _names(entry)}
        if not fitting:
            known = dict.fromkeys(word for entry in everything for word in _names(entry))
            near = ", ".join(closest(name, list(known))[:NEAREST])
            raise UserError(f"no published row is of {name!r}; the closest of {len(known)} names: {near}")
        found |= fitting
    return [found[number] for number in sorted(found)]


def _names(entry: Entry) -> list[str]:
    names = [entry.family, entry.place, entry.paper.paper]
    return [*names, entry.row.plan] if entry.row.plan else names


def metrics(plan: str, everything: list[Entry]) -> dict[str, list[str]]:
    """The metrics that the catalogue asks of each contender of a plan."""
    found: dict[str, list[str]] = {}
    for entry in everything:
        if entry.row.plan == plan and entry.row.contender:
            found.setdefault(entry.row.contender, []).extend((entry.table.metric, *entry.row.others))
    return found
