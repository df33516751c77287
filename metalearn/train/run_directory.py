"""The directory in which a run lives; it belongs to one process at a time.

run.yaml         the resolved configuration; `metalearn train --config-dir RUN --config-name run` runs it anew
provenance.json  versions, commit, seed, hardware, task, command line; `history` holds earlier starts
status.json      {"state": running|finished|stopped|failed|diverged|interrupted, "step", "message"}
metrics.jsonl    a row per logged step, no times: an interrupted and resumed run writes the same bytes
timing.jsonl     seconds, steps per second and, where the device tells it, energy of the logged steps
checkpoints/     the last few and the best
artifacts/       what the method leaves to the user
wandb/           W&B's own files
"""

import datetime
import itertools
import json
import re
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import OmegaConf

from metalearn.config import Config
from metalearn.registry import UserError
from metalearn.train import provenance, stored_config
from metalearn.train.console import say
from metalearn.train.failure import state_of
from metalearn.train.files import PREFIX, read_json, remove_stale, write_json
from metalearn.train.lock import Lock

CONFIG = "run.yaml"
PROVENANCE = "provenance.json"
STATUS = "status.json"
COMPARED = ("versions", "git", "hardware", "task")  # a change of these may change results


class RunDirectory:
    """A locked run directory. As a context manager it frees the lock, and notes why a run broke off."""

    def __init__(self, path: Path, lock: Lock, command: Sequence[str]) -> None:
        self.path = path
        self.command = list(command)
        self.step = 0  # the steps done, for status.json
        self._lock = lock

    @property
    def finished(self) -> bool:
        """Whether the run has nothing left to do."""
        return self.status.get("state") == "finished"

    @property
    def status(self) -> dict[str, Any]:
        """What status.json says."""
        return read_json(self.path / STATUS)

    @property
    def wandb_id(self) -> str:
        """The run's identity at W&B, the same after every resume."""
        return read_json(self.path / PROVENANCE)["wandb_id"]

    @property
    def is_new(self) -> bool:
        """Whether this is the run's first start."""
        return not read_json(self.path / PROVENANCE)["history"]

    def set_status(self, state: str, message: str = "") -> None:
        """Replace status.json. Raises UserError if it cannot be written."""
        path = self.path / STATUS
        try:
            write_json(path, {"state": state, "step": self.step, "message": message})
        except OSError as error:
            raise UserError(f"{path}: cannot write: {error.strerror}; free space and run again") from error

    def record(self, **entries: Any) -> None:
        """Add entries to provenance.json, e.g. `task=provenance.of_task(spec)`.

        An entry that differs from the last start's is said: results may then differ in the last bits.
        """
        entries = json.loads(json.dumps(entries))  # tuples as lists, as they come back
        stored = read_json(self.path / PROVENANCE)
        before = stored["history"][-1] if stored["history"] else {}
        for name, value in entries.items():
            if name in COMPARED and before.get(name, value) != value:
                changes = stored_config.differences(before[name], value)
                say(f"{name} differs from this run's last start, results may too: {changes}")
        write_json(self.path / PROVENANCE, {**stored, **entries})

    def record_task(self, spec: Any) -> None:
        """Note the TaskSpec in provenance.json: source, digest, whether its figures are comparable."""
        self.record(task=provenance.of_task(spec))

    def resume_command(self) -> str:
        """A command line that goes on with this run, whatever command it came from: a sweep, a recipe."""
        return shlex.join(["metalearn", "train", "--config-dir", str(self.path), f"run_dir={self.path}"])

    def close(self) -> None:
        """Free the lock."""
        self._lock.release()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self.finished:
                self.set_status(state_of(error), _first_line(error))
        except UserError as problem:
            say(str(problem))
        finally:
            self.close()


def open_run(config: Config, *, command: Sequence[str]) -> RunDirectory:
    """Make the run's directory, or take up an old one that holds the same configuration, and lock it.

    Without `run_dir` it is `<runs>/<name>/<time>_seed<k>`, never one that exists. With it, an absent or empty
    folder is a new run and one with run.yaml is resumed. `finished` says that nothing is left to do.
    Raises UserError: a changed configuration, another process in it, foreign files, no right to write.
    """
    try:
        path = _new_folder(config) if config.run_dir is None else _given_folder(config.run_dir)
        lock = Lock(path)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot make the run directory: {error.strerror}; "
            "choose another by runs= or run_dir="
        ) from None
    directory = RunDirectory(path, lock, command)
    try:
        _prepare(directory, config)
    except BaseException:
        directory.close()
        raise
    return directory


def _new_folder(config: Config) -> Path:
    if not re.fullmatch(r"[\w=+-][\w.=+-]*(/[\w=+-][\w.=+-]*)*", config.name):
        raise UserError(
            f"name: got {config.name!r}, must be letters, digits and any of . _ - = +, in parts divided by /"
        )
    parent = Path(config.runs).expanduser() / config.name
    parent.mkdir(parents=True, exist_ok=True)
    base = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_seed{config.seed}"
    for number in itertools.count(1):
        path = parent / (base if number == 1 else f"{base}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _given_folder(run_dir: str) -> Path:
    path = Path(run_dir).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    foreign = [
        entry.name for entry in path.iterdir() if entry.name != "lock" and not entry.name.startswith(PREFIX)
    ]
    if foreign and CONFIG not in foreign:
        raise UserError(
            f"run_dir: {path} holds {sorted(foreign)[0]} but no {CONFIG}, so it is no run; "
            "give a new or empty folder"
        )
    return path


def _prepare(directory: RunDirectory, config: Config) -> None:
    path = directory.path
    try:
        remove_stale(path)
        old = (path / CONFIG).exists() and begun(path)
        if old:
            stored_config.check_same(path / CONFIG, config)
        if old and directory.finished and not _goes_on(path / CONFIG, config, directory.status):
            say(f"{path}: finished at step {directory.status['step']}, nothing to do")
            return
        stored_config.write(path / CONFIG, config)
        _write_provenance(directory, config)
        directory.step = directory.status.get("step", 0)
        directory.set_status("running")
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}; choose another run_dir") from None


def begun(path: Path) -> bool:
    """Whether the run got as far as a row or a checkpoint; before that its configuration may change."""
    rows = path / "metrics.jsonl"
    return (rows.exists() and rows.stat().st_size > 0) or any((path / "checkpoints").glob("*.pt"))


def _goes_on(stored: Path, config: Config, status: dict[str, Any]) -> bool:
    """Whether a run that its minutes ended has got more of them."""
    before, now = OmegaConf.load(stored).train.minutes, config.train.minutes
    ended_early = status["step"] < config.train.steps
    return ended_early and before is not None and (now is None or now > before)


def _write_provenance(directory: RunDirectory, config: Config) -> None:
    stored = read_json(directory.path / PROVENANCE)
    history = stored.pop("history", [])
    identity = stored.get("wandb_id", secrets.token_hex(4))
    start = {"wandb_id": identity, "history": [*history, stored] if stored else []}
    write_json(directory.path / PROVENANCE, start)
    directory.record(**provenance.of_start(directory.command, config.seed))


def _first_line(error: BaseException) -> str:
    text = (str(getattr(error, "message", error)).splitlines() or [""])[0]
    kind = "" if isinstance(error, UserError | SystemExit) else type(error).__name__ + (": " if text else "")
    return kind + text
