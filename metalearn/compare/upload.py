"""Runs to W&B: offline logs by its own `wandb sync`; a run without one gets one from metrics.jsonl first."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn import records
from metalearn.records import Run
from metalearn.registry import UserError

EXIT_CODES = {"finished": 0, "diverged": 3, "interrupted": 130}  # others: 1
LAST = 6  # lines of W&B's own words in a message


@dataclass(frozen=True)
class Parcel:
    """What of one run is to be sent."""

    run: Run
    logs: tuple[Path, ...] = ()  # offline W&B files that were not sent yet
    kept: str = ""  # why nothing is sent

    @property
    def project(self) -> str:
        """The project that the run's configuration names."""
        return str(self._log("project") or "metalearn")

    @property
    def entity(self) -> str:
        """The user or team that the run's configuration names; empty: the key's own."""
        return str(self._log("entity") or "")

    @property
    def how(self) -> str:
        """For people: what happens to the run."""
        if self.kept:
            return self.kept
        if self.logs:
            return f"its offline W&B log{'s' * (len(self.logs) > 1)}"
        return "no W&B log: metrics.jsonl"

    def _log(self, key: str) -> Any:
        return self.run.config.get("log", {}).get(key)


def parcel(path: Path) -> Parcel:
    """What there is to send of a run directory. Raises UserError for a broken one."""
    run = records.read(path)
    logs = sorted(path.glob("wandb/offline-run-*/*.wandb"))
    unsent = tuple(log for log in logs if not sent(log))
    if run.state == "running":
        return Parcel(run, kept="is running: publish it when it has ended")
    if unsent:
        return Parcel(run, unsent)
    if logs:
        return Parcel(run, kept="was sent before")
    if any(path.glob("wandb/run-*/*.wandb")):
        return Parcel(run, kept="was logged online")
    return Parcel(run) if run.rows else Parcel(run, kept="has no row")


def sent(log: Path) -> bool:
    """Whether W&B's marker stands beside the log: `wandb sync` sets it once all has arrived."""
    return log.with_suffix(".wandb.synced").exists()


def replay(run: Run) -> tuple[Path, ...]:
    """Write the offline W&B log that `log=offline` would have written: the run's own id, rows and end.

    It is made beside and moved, so that a run never holds half a log. Pictures and files are not in it.
    """
    import wandb

    place = run.path / f".tmp-wandb-{os.getpid()}"
    place.mkdir()
    try:
        session = wandb.init(**_settings(run, place))
        session.define_metric("step", hidden=True)
        session.define_metric("*", step_metric="step")
        for row in run.rows:
            session.log(row, step=row["step"])
        session.finish(exit_code=EXIT_CODES.get(run.state, 1))
        (run.path / "wandb").mkdir(exist_ok=True)
        made = [folder.rename(run.path / "wandb" / folder.name) for folder in _logs(place)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return tuple(log for folder in made for log in folder.glob("*.wandb"))


def _logs(place: Path) -> list[Path]:
    return list(place.glob("wandb/offline-run-*"))


def _settings(run: Run, place: Path) -> dict[str, Any]:
    import wandb

    config = run.config
    lean = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True,
        x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    log = config.get("log", {})
    return {
        "mode": "offline",
        "dir": str(place),
        "id": run.provenance.get("wandb_id"),
        "project": log.get("project"),
        "entity": log.get("entity"),
        "group": log.get("group") or config.get("name"),
        "job_type": config.get("role"),
        "name": run.path.name,
        "tags": log.get("tags"),
        "config": {**config, "provenance": run.provenance},
        "settings": lean,
    }


def send(logs: Sequence[Path], entity: str, project: str) -> None:
    """Upload logs by `wandb sync`, which marks those that arrived. Raises UserError for the others."""
    command = [sys.executable, "-m", "wandb", "sync", "-e", entity, "-p", project, *map(str, logs)]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, **both)  # type: ignore[call-overload]
    left = [log for log in logs if not sent(log)]
    if left:
        words = [line for line in done.stdout.splitlines() if line.startswith(("wandb:", "panic:", "Error"))]
        said = "\n  ".join(words[-LAST:])
        raise UserError(
            f"publish: {len(left)} of {len(logs)} logs did not arrive, {left[0].parent} among them; run the "
            f"same command again, it goes on with these. wandb sync ended with {done.returncode}:\n  {said}"
        )
