"""A small language for random options, as plain containers of a yaml file.

{choice: [a, b, c]}             one of these, all as likely
{uniform: [low, high]}          a number; two whole numbers: a whole one, `high` among them
{log_uniform: [low, high]}      the same on a logarithmic scale
{list: {length: D, of: D}}      a list; `length` is a whole number or a distribution of them
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from metalearn.registry import UserError

FORMS = (
    "{choice: [a, b]}, {uniform: [low, high]}, {log_uniform: [low, high]} or {list: {length: 2, of: ...}} "
    "with a distribution for `of`, and one or a number for `length`"
)
WORDS = ("choice", "uniform", "log_uniform", "list")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Distributions by dotted key, whether the keys came dotted or nested."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and not set(value) & set(WORDS)
        found |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def check(distribution: Any, key: str) -> None:
    """Raises UserError that names `key` for what is no distribution."""
    word, value = _parts(distribution)
    if word == "list" and isinstance(value, Mapping) and set(value) == {"length", "of"}:
        _check_length(value["length"], f"{key}.length")
        check(value["of"], f"{key}.of")
        return
    valid = isinstance(value, list) and len(value) > 0 if word == "choice" else _is_range(word, value)
    if not valid:
        raise UserError(f"{key}: got {distribution!r}, must be a distribution: {FORMS}; low <= high")


def _check_length(length: Any, key: str) -> None:
    if not isinstance(length, int):
        check(length, key)
    ends = [length] if isinstance(length, int) else _parts(length)[1]
    if not all(type(end) is int and end >= 0 for end in ends):
        raise UserError(f"{key}: got {length!r}, must give whole numbers from 0 up")


def draw(distribution: Any, share: Callable[[], float]) -> Any:
    """A value of a distribution that `check` has passed; `share` gives numbers from 0 up to but not 1.

    Always 0 makes it the lowest, the first choice and the shortest list; always just below 1 the highest.
    """
    word, value = _parts(distribution)
    if word == "choice":
        return value[math.floor(share() * len(value))]
    if word == "list":
        length = value["length"]
        length = length if isinstance(length, int) else draw(length, share)
        return [draw(value["of"], share) for _ in range(length)]
    low, high = value
    whole = isinstance(low, int) and isinstance(high, int)
    if word == "log_uniform":
        drawn = low * ((high + whole) / low) ** share()
    else:
        drawn = low + (high + whole - low) * share()
    return min(math.floor(drawn), high) if whole else min(max(drawn, low), high)


def _parts(distribution: Any) -> tuple[str, Any]:
    """The word and what comes with it; no word where it is none of ours."""
    if not isinstance(distribution, Mapping) or len(distribution) != 1:
        return "", None
    return next((str(word), value) for word, value in distribution.items())


def _is_range(word: str, value: Any) -> bool:
    if word not in ("uniform", "log_uniform") or not isinstance(value, list) or len(value) != 2:
        return False
    if not all(type(end) in (int, float) and math.isfinite(end) for end in value):
        return False
    return value[0] <= value[1] and (value[0] > 0 or word == "uniform")
