"""Names of tasks, networks, methods, hypergradients, rules and mixtures: what a configuration may ask for.

An entry ties a name to the dataclass of its options and to the place of its class, which is imported
only when it is built: listing names and checking a configuration needs no torch.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

GROUPS = ("task", "network", "method", "hypergradient", "rule", "mixture")
OPTIONAL = ("hypergradient", "rule", "mixture")  # groups that a run may do without


class UserError(Exception):
    """A mistake that the user can mend: says what came, what is allowed and what to do.

    `exit_code` is what the command ends with.
    """

    exit_code = 2


class Entry(NamedTuple):
    """One registered name."""

    options: type  # a dataclass; its first field is `name`
    target: str  # "package.module:Class"


_entries: dict[tuple[str, str], Entry] = {}


def register(group: str, name: str, target: str) -> Callable[[type], type]:
    """Decorate the dataclass of an option's fields: `@register("task", "digits", "tasks.images:Digits")`."""

    def decorate(options: type) -> type:
        if (group, name) in _entries:
            raise ValueError(f"{group} {name} is registered twice")
        _entries[group, name] = Entry(options, target)
        return options

    return decorate


def names(group: str) -> list[str]:
    """All names of a group, sorted."""
    return sorted(name for kind, name in _entries if kind == group)


def closest(name: str, allowed: list[str]) -> list[str]:
    """`allowed`, most similar to `name` first."""
    return sorted(allowed, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())


def entry(group: str, name: str) -> Entry:
    """Look a name up. Raises UserError listing the right names, closest first."""
    if (group, name) not in _entries:
        allowed = ", ".join(closest(name, names(group)))
        raise UserError(f"no {group} is called {name!r}; choose one of: {allowed}")
    return _entries[group, name]


def build(group: str, options: Any, **context: Any) -> Any:
    """Import the class that `options.name` stands for and call it with the options and the context."""
    module, _, attribute = entry(group, options.name).target.partition(":")
    return getattr(importlib.import_module(module), attribute)(options, **context)


def name_of(group: str, thing: Any) -> str:
    """What a configuration calls the class of `thing`; for one that is not registered, the class's name."""
    target = f"{type(thing).__module__}:{type(thing).__qualname__}"
    found = (name for (kind, name), entry in _entries.items() if (kind, entry.target) == (group, target))
    return next(found, type(thing).__name__)


def fields(group: str, name: str) -> list[str]:
    """The option names of an entry, in order."""
    return [field.name for field in dataclasses.fields(entry(group, name).options)]
