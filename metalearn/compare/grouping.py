"""Which runs are one configuration, and in what configurations differ."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from metalearn.compare.model import Entry
from metalearn.records import PLACES, differing

Config = Mapping[str, Any]


def grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Runs that differ in nothing but seed and places, together; in order of appearance."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(json.dumps(learned(entry), sort_keys=True, default=str), []).append(entry)
    return list(groups.values())


def learned(entry: Entry) -> dict[str, Any]:
    """The configuration without seed and places; a path that names the run's own seed is any seed's.

    So a run that takes up what an earlier stage of its seed left is one configuration with the other seeds'.
    """
    own = re.compile(rf"(?<![A-Za-z0-9])seed{entry.seed}(?![0-9])")
    return {
        key: own.sub("seed*", value) if isinstance(value, str) and "/" in value else value
        for key, value in entry.config.items()
        if key.partition(".")[0] not in PLACES
    }


def telling(configs: Sequence[Config]) -> list[str]:
    """The keys that tell configurations apart, less those that follow from the names that differ.

    Another method brings its own options along: its name says enough.
    """
    keys = differing([dict(config) for config in configs])
    names = [key for key in keys if key.endswith(".name")]
    if not names:
        return keys
    return [*names, *(key for key in keys if key not in names and not _follows(key, names, configs))]


def _follows(key: str, names: Sequence[str], configs: Sequence[Config]) -> bool:
    seen: dict[str, str] = {}
    for config in configs:
        named = text([config.get(name) for name in names])
        value = text(config.get(key, "-"))
        if seen.setdefault(named, value) != value:
            return False
    return True


def short(keys: Sequence[str]) -> dict[str, str]:
    """Each key's last part, as many parts as it takes to be the only one; of a name, what is named."""
    return {key: _short(key, keys) for key in keys}


def _short(key: str, keys: Sequence[str]) -> str:
    def end(of: str, count: int) -> str:
        parts = of.removesuffix(".name").split(".")
        return ".".join(parts[-count:])

    count = 1
    while end(key, count) != key.removesuffix(".name"):
        if all(other == key or end(other, count) != end(key, count) for other in keys):
            return end(key, count)
        count += 1
    return key if key.removesuffix(".name") in keys else key.removesuffix(".name")


def labels(groups: Sequence[Sequence[Entry]], keys: Sequence[str], alone: str) -> list[str]:
    """A name for each configuration: that of its run directories where they have one, else what differs."""
    if len(groups) == 1:
        return [alone]
    found = _stems(groups)
    if found is not None:
        return found
    configs = [learned(group[0]) for group in groups]
    table = [[text(config[key]) if key in config else "-" for key in keys] for config in configs]
    needed = _needed(table)
    heads, columns = short(keys), list(zip(*table, strict=True))
    told = {place: apart(columns[place]) for place in needed}
    return [
        ", ".join(f"{heads[keys[place]]}={told[place][row]}" for place in needed if table[row][place] != "-")
        for row in range(len(table))
    ]


def _stems(groups: Sequence[Sequence[Entry]]) -> list[str] | None:
    """What stands before `_seed<k>` in the names of all run directories.

    Where that is not enough, with the folders in which not all of them lie.
    """
    found = []
    for group in groups:
        stems = {place for entry in group if (place := _stem(entry)) is not None}
        if len(stems) != 1 or any(_stem(entry) is None for entry in group):
            return None
        found.append(stems.pop().split("/"))
    if len(set(map(tuple, found))) < len(found):
        return None
    if len({parts[-1] for parts in found}) == len(found):
        return [parts[-1] for parts in found]
    ahead = _same(found)
    return ["/".join(parts[ahead:]) for parts in found]


def _stem(entry: Entry) -> str | None:
    parent, _, name = entry.place.rpartition("/")
    match = re.fullmatch(r"([A-Za-z].*?)_seed\d+", name)
    return f"{parent}/{match[1]}".lstrip("/") if match and match[1] != "run" else None


def _needed(table: Sequence[Sequence[str]]) -> list[int]:
    """Columns without which rows would be the same; the first ones stay."""
    kept = list(range(len(table[0])))
    for place in reversed(kept.copy()):
        rest = [other for other in kept if other != place]
        if len({tuple(row[other] for other in rest) for row in table}) == len(table):
            kept = rest
    return kept


def apart(values: Sequence[str]) -> list[str]:
    """Paths without the folders that all of them begin and end with."""
    paths = [value.split("/") for value in values if "/" in value]
    if len(paths) < 2 or len(set(map(tuple, paths))) < 2:
        return list(values)
    ahead = _same(paths)
    behind = _same([path[ahead:][::-1] for path in paths])
    return [
        "/".join(value.split("/")[ahead : len(value.split("/")) - behind]) if "/" in value else value
        for value in values
    ]


def _same(paths: Sequence[Sequence[str]]) -> int:
    """How many parts all begin with, of each at least one left over."""
    most = min(map(len, paths)) - 1
    return next((n for n in range(most) if len({path[n] for path in paths}) > 1), most)


def text(value: Any) -> str:
    """A value as one reads it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
