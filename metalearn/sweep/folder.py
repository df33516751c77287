"""The folder of a sweep: its definition, its lock, its tables.

sweep.json      what was asked for; a launch that asks for something else is refused
study.db        or study.log: Optuna's study (sweep=tpe, gp)
summary.json    every trial and run: state, value, steps, seconds, folder; summary.csv: a row a run
summary.md      the trials, best first
<digest>_seed<k>/  the runs
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metalearn.registry import UserError
from metalearn.sweep.definition import Sweep
from metalearn.train.files import read_json, remove_stale, write_json
from metalearn.train.lock import Lock
from metalearn.train.stored_config import differences

DEFINITION = "sweep.json"


@contextmanager
def held(sweep: Sweep) -> Iterator[Path]:
    """The sweep's folder, locked, with its definition in it. Raises UserError."""
    folder = sweep.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; choose another by runs=") from None
    try:
        lock = Lock(folder)
    except UserError as error:
        holder = str(error).partition(" is running")[0].rpartition(": ")[2]
        raise UserError(
            f"{folder}: {holder} is at this sweep; wait for it or end it, or start another by sweep.name="
        ) from None
    try:
        remove_stale(folder)
        check_definition(sweep)
        write_json(folder / DEFINITION, {"name": sweep.id, "definition": sweep.definition})
        yield folder
    finally:
        lock.release()


def check_definition(sweep: Sweep) -> None:
    """Refuse to mix what was asked for before with something else. Raises UserError with the difference."""
    path = sweep.folder / DEFINITION
    stored = read_json(path).get("definition")
    if stored is not None and not (isinstance(stored, dict) and isinstance(stored.get("seeds"), list)):
        raise UserError(f"{path}: is damaged (no definition); delete it and run the same command again")
    if stored is None or _same(sweep, stored):
        return
    raise UserError(
        f"{sweep.folder}: was started as another sweep: {differences(stored, sweep.definition)}; go on with "
        "the old one, or give this one another sweep.name"
    )


def _same(sweep: Sweep, stored: dict[str, Any]) -> bool:
    now = sweep.definition
    if sweep.grows and set(stored.get("seeds", ())) <= set(now["seeds"]):
        stored = {**stored, "seeds": now["seeds"]}
    return stored == now
