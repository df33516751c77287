"""run.yaml read fast: of a thousand runs of a sweep most blocks are the same text."""

import functools
import re
from pathlib import Path
from typing import Any

import yaml

from metalearn.registry import UserError

# numbers as OmegaConf reads them, 1e-3 too, which YAML 1.1 takes for a string
NUMBER = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
OPENS = re.compile(r"^(?=[A-Za-z_])", re.M)  # a key of the outermost mapping
NO_PART = ("defaults", "hydra")  # of the run


class Loader(yaml.CSafeLoader):
    """YAML without dates, as OmegaConf has it."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, NUMBER if tag.endswith(":float") else pattern)
        for tag, pattern in resolvers
        if not tag.endswith(":timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: Path) -> dict[str, Any]:
    """The configuration in a run.yaml. Raises UserError naming what is wrong."""
    try:
        loaded = parse(path.read_text("utf-8"))
        if "seed" not in loaded or "name" not in (loaded.get("task") or {}):
            raise ValueError("it lacks seed or task.name")
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: cannot be read as a configuration: {reason}") from None
    return {str(key): value for key, value in loaded.items() if key not in NO_PART}


def parse(text: str) -> dict[str, Any]:
    """A mapping in YAML, block by block, each different one read once. Raises ValueError, YAMLError."""
    parts = [part for part in OPENS.split(text) if part.strip()]
    try:
        blocks = [_block(part) for part in parts]
    except (yaml.YAMLError, RecursionError):  # what refers to another block, or is broken: as one
        blocks = [yaml.load(text, Loader)]
    if not all(isinstance(block, dict | None) for block in blocks):
        raise ValueError("it is no mapping")
    return {key: value for block in blocks for key, value in (block or {}).items()}


@functools.lru_cache(maxsize=4096)
def _block(text: str) -> Any:
    """Shared by all runs that have it: never changed."""
    return yaml.load(text, Loader)
