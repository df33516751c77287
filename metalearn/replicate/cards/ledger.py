"""conf/deviations: where a paper, its authors' code and this suite differ, as a page."""

import re
from pathlib import Path
from typing import Any

import yaml

from metalearn.compose import CONF
from metalearn.registry import UserError

FOLDER = CONF / "deviations"
REQUIRED = ("name", "paper", "code", "ours", "effect")
TITLES = {
    "darts": "DARTS",
    "hypernetworks": "HyperNetworks",
    "learned_optimizers": "Learned optimizers",
}

CLEAR = re.compile(r"\b(beats|loses to)\b")  # as claims have it

Family = list[dict[str, Any]]


def read(folder: Path = FOLDER) -> dict[str, Family]:
    """The entries of every family. Raises UserError naming what an entry lacks."""
    return {path.stem: _entries(path) for path in sorted(folder.glob("*.yaml"))}


def _entries(path: Path) -> Family:
    try:
        entries = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}") from None
    for number, entry in enumerate(entries or []):
        lacking = [key for key in REQUIRED if not isinstance(entry, dict) or not entry.get(key)]
        if lacking:
            raise UserError(f"{path.name}: entry {number + 1} has no {', '.join(lacking)}")
    return entries or []


def page(families: dict[str, Family]) -> str:
    """The ledger: one entry under another, each with its switch and the effect that was measured."""
    count = sum(map(len, families.values()))
    known = sum(bool(entry.get("measured")) for entries in families.values() for entry in entries)
    parts = [
        "# Deviations",
        f"Where a paper, its authors' code and this suite differ: {count} places, the effect of {known} "
        "measured. A switch is a key of the configuration; what stands under *ours* is its default, or a "
        "recipe's.",
        *_index([entry for entries in families.values() for entry in entries if entry.get("measured")]),
    ]
    for family, entries in families.items():
        parts.append(f"## {TITLES.get(family, family)}")
        parts += [_entry(entry) for entry in entries]
    return "\n\n".join(parts) + "\n"


def _index(measured: Family) -> list[str]:
    """Links to what was measured, by whether a claim in it is clear."""
    clear = [entry for entry in measured if CLEAR.search(str(entry["effect"]))]
    parts = {
        "A clear effect": clear,
        "Measured, no difference established": [e for e in measured if e not in clear],
    }
    return [f"{what}: {', '.join(map(_link, members))}." for what, members in parts.items() if members]


def _link(entry: dict[str, Any]) -> str:
    title = _title(entry)
    return f"[{title}](#{re.sub(r'[^a-z0-9 _-]', '', title.lower()).replace(' ', '-')})"


def _title(entry: dict[str, Any]) -> str:
    return str(entry["name"]).replace("_", " ")


def _entry(entry: dict[str, Any]) -> str:
    switch = f"`{entry['switch']}`" if entry.get("switch") else "no switch"
    lines = [
        f"### {_title(entry)}",
        "",
        f"- switch: {switch}",
        f"- paper: {entry['paper']}",
        f"- code: {entry['code']}",
        f"- ours: {entry['ours']}",
        f"- effect: {entry['effect']}{_measured(entry.get('measured'))}",
    ]
    if entry.get("source"):
        lines.append(f"- source: {entry['source']}")
    return "\n".join(lines)


def _measured(measured: Any) -> str:
    """Where the figures of an effect are, and the command that makes them."""
    if not isinstance(measured, dict):
        return ""
    report = f" ([report](../{measured['report']}))" if measured.get("report") else ""
    command = f", `{measured['command']}`" if measured.get("command") else ""
    return report + command
