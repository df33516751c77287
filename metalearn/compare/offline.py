"""Offline W&B runs: wandb/offline-run-*/run-*.wandb, of any program that wrote them."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metalearn import records
from metalearn.compare import transaction_log
from metalearn.compare.entry import Told, entry
from metalearn.compare.metrics import from_rows
from metalearn.compare.model import Entry
from metalearn.registry import UserError

STATES = {0: "finished", 3: "diverged", 130: "interrupted", 143: "interrupted"}  # by exit code


@dataclasses.dataclass
class _Log:
    """What the files of one run say; a resumed run has several, the later ones going on."""

    paths: list[Path]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)  # by step
    exit_code: int | None = None


def below(folder: Path) -> Iterator[Path]:
    """W&B's log files in a folder or a file itself, those of run directories left out."""
    if folder.suffix == ".wandb":
        yield folder
        return
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "run.yaml" in files and Path(place) != folder:
            folders.clear()
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".wandb"))


def read(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """The runs that the files hold, and a sentence for each file that cannot be read. Raises UserError."""
    try:
        import wandb.proto.wandb_internal_pb2  # noqa: F401
    except ImportError as error:
        raise UserError(f"offline W&B runs need the package wandb ({error}): uv sync") from None
    runs: dict[str, list[Path]] = {}
    for path in sorted(set(paths), key=lambda path: path.parent.name):  # named for the time they began
        runs.setdefault(path.stem, []).append(path)
    entries, notices = [], []
    for files in runs.values():
        try:
            entries.append(_entry(_read(files)))
        except (OSError, ValueError) as error:
            notices.append(f"left out: {files[-1]}: cannot be read as a W&B log: {error}")
    return entries, notices


def _read(paths: Sequence[Path]) -> _Log:
    """Raises ValueError, OSError."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    log = _Log(list(paths))
    for path in paths:
        log.exit_code = None
        for data in transaction_log.records(path):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            try:
                record.ParseFromString(data)
            except DecodeError as error:
                raise ValueError(str(error)) from None
            _take(log, record)
    return log


def _take(log: _Log, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        _update(log.config, record.run.config.update)
    elif kind == "config":
        _update(log.config, record.config.update)
    elif kind == "history":
        row = _row(record.history.item)
        step = row["step"] if isinstance(row.get("step"), int) else row.get("_step", record.history.step.num)
        log.rows.setdefault(int(step), {}).update(row)
    elif kind == "exit":
        log.exit_code = record.exit.exit_code


def _row(items: Iterable[Any]) -> dict[str, Any]:
    """Numbers by dotted name; pictures and files, which tell their type, left out."""
    found = {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in items}
    media = {way[:-1] for way in found if way[-1] == "_type"}
    return {".".join(way): value for way, value in found.items() if way[:-1] not in media or len(way) == 1}


def _update(config: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *way, last = list(item.nested_key) or [item.key]
        place = config
        for key in way:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)


def _entry(log: _Log) -> Entry:
    config = {key: value for key, value in log.config.items() if not key.startswith("_")}
    rows = [{**row, "step": step} for step, row in sorted(log.rows.items())]
    state = "crashed" if log.exit_code is None else STATES.get(log.exit_code, "failed")
    series = {name: one for name, one in from_rows(rows, "step").items() if not name.startswith("_")}
    folder = log.paths[-1].parent
    more: dict[str, Any] = {"seconds": _seconds(rows), "comparable": _comparable(folder)}
    last = rows[-1]["step"] if rows else 0
    return entry(Told(str(folder), "offline W&B", config, series, state, last, "", more))


def _seconds(rows: Sequence[dict[str, Any]]) -> float | None:
    return next((row["_runtime"] for row in reversed(rows) if "_runtime" in row), None)


def _comparable(folder: Path) -> bool:
    """What the run directory around it says of its data; a run of other programs says nothing."""
    try:
        about = records.read_object(folder.parent.parent / "provenance.json")
    except UserError:
        return True
    return about.get("task", {}).get("comparable", True)
