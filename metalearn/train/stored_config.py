"""A run's configuration in its directory: written so that it runs again, and compared when a run goes on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metalearn.config import Config
from metalearn.registry import GROUPS, UserError
from metalearn.train.console import say
from metalearn.train.files import write_text

# may differ when a run goes on: none of these changes a number of metrics.jsonl ...
FREE = (
    "train.minutes",
    "train.stop_at",
    "train.keep",
    "log",
    "runs",
    "run_dir",
    "data_dir",
    "download",
    "paper",
)
# ... and these only its last bits, which is said
TOLERATED = ("machine.name", "machine.device", "machine.threads")

HEADER = """\
# The resolved configuration of this run. Run it anew, in a new directory, by
#   metalearn train --config-dir THIS_DIRECTORY --config-name run
defaults:
  - _self_
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
hydra:
  run: {dir: .}
  sweep: {dir: ., subdir: .}
  output_subdir: null
  job: {chdir: false}
"""


def write(path: Path, config: Config) -> None:
    """Put the configuration in the place of `path`."""
    write_text(path, HEADER + OmegaConf.to_yaml(OmegaConf.create(plain(config))))


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain containers that compose to it again; where it is and stops is left open."""
    values = dataclasses.asdict(config)
    values["train"]["stop_at"] = None
    for group in GROUPS:
        values[group] = values[group] or {"name": "none"}
    return {**values, "run_dir": None}


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    parts = (flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in values.items())
    return {key: value for part in parts for key, value in part.items()}


def check_same(stored: Path, config: Config) -> None:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(stored))
    except Exception as error:
        raise UserError(f"{stored}: cannot be read: {error}; choose another run_dir") from error
    assert isinstance(loaded, dict)
    old = flat({key: value for key, value in loaded.items() if key not in ("hydra", "defaults")})
    new = flat(OmegaConf.to_container(OmegaConf.create(plain(config))))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and not _under(key, FREE)]
    tolerated = [key for key in changed if _under(key, TOLERATED)]
    for key in tolerated:
        say(f"{key} was {old.get(key)!r} and is {new.get(key)!r}: results may differ in the last bits")
    refused = [key for key in changed if key not in tolerated]
    if refused:
        lines = "".join(f"\n  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in refused)
        raise UserError(
            f"{stored.parent}: was started with another configuration:{lines}\n"
            f"go on with the old values, or choose another run_dir; free to change are {', '.join(FREE)}"
        )


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def differences(old: Any, new: Any) -> str:
    a, b = flat(old), flat(new)
    return ", ".join(f"{key} {a.get(key)} -> {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key))
