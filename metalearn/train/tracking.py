"""Weights & Biases, fed from the rows of metrics.jsonl. Nothing that goes wrong here ends a run."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from metalearn.config import Config
from metalearn.train.console import say
from metalearn.train.failure import exit_code_of
from metalearn.train.run_directory import RunDirectory
from metalearn.train.stored_config import plain
from metalearn.unattended import no_questions

INIT_SECONDS = 20.0  # then offline
AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
REPORTS = ("report.md", "report.html")
FINISH_SECONDS = 120.0  # of waiting for uploads; `wandb sync` sends the rest


class Tracker:
    """One W&B run for one run directory, or none (`log=none`).

    Offline by default. Online without a key or a server goes on offline, with one warning. A resumed run
    keeps its W&B id; rows carry their step, so that what is sent twice stays one row. Under an agent of a
    W&B sweep a new run takes the agent's id; other runs of the same process stay runs of their own.
    """

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self._config, self._directory = config, directory
        self._run: Any = None

    def __enter__(self) -> "Tracker":
        if self._config.log.name != "none":
            self._attempt("starting", self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attempt("finishing", lambda: self._run.finish(exit_code=exit_code_of(error)))
        if self._run is not None:
            _leave_agent()
        self._run = None

    def log(self, row: dict[str, Any]) -> None:
        """Send a row."""
        self._attempt("logging", lambda: self._run.log(row, step=row["step"]))

    def upload(self, folder: Path) -> None:
        """Send a folder's files as one artifact, and its pictures to look at; beside it, the run's report."""
        self._attempt("uploading", lambda: self._upload(folder))

    def _attempt(self, doing: str, action: Callable[[], Any]) -> None:
        if self._run is None and doing != "starting":
            return
        try:
            action()
        except Exception as error:
            self._run = None
            reason = (str(error).splitlines() or [""])[0]
            say(
                f"W&B stopped while {doing} ({type(error).__name__}: {reason}); the run goes on and "
                "metrics.jsonl is complete"
            )

    def _start(self) -> None:
        mode = (
            os.environ.get("WANDB_MODE") or {"wandb": "online", "offline": "offline"}[self._config.log.name]
        )
        if mode != "online":
            self._run = self._init(mode)
            return
        try:
            with no_questions():
                self._run = self._init(mode)
        except Exception as error:
            _forget_attempt()
            reason = (str(error).splitlines() or [""])[0]
            say(
                f"W&B is out of reach ({type(error).__name__}: {reason}); going on offline, "
                f"`wandb sync {self._directory.path}/wandb/offline-run-*` sends it later"
            )
            self._run = self._init("offline")

    def _init(self, mode: str) -> Any:
        import wandb

        config, log, agents = self._config, self._config.log, self._under_agent()
        settings = wandb.Settings(
            console="off",
            silent=mode != "online",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=INIT_SECONDS,
            login_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )
        run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            project=None if agents else log.project,
            entity=None if agents else log.entity,
            group=log.group or config.name,
            job_type=config.role,
            name=self._directory.path.name,
            tags=log.tags,
            config=plain(config),
            dir=str(self._directory.path),
            id=None if agents else self._directory.wandb_id,
            resume="allow",
            settings=settings,
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    def _under_agent(self) -> bool:
        """Whether this is the run that a sweep's agent has started: W&B then takes id and project from it."""
        chosen = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        if chosen is None:
            return False
        if self._directory.is_new:
            self._directory.record(wandb_id=chosen)
        if chosen != self._directory.wandb_id:
            _leave_agent()
            return False
        return True

    def _upload(self, folder: Path) -> None:
        import wandb

        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
        reports = [path for name in REPORTS if (path := folder.parent / name).is_file()]
        if not files + reports:
            return
        pictures: dict[str, Any] = {}
        for path in files:
            name = f"artifacts/{path.relative_to(folder).with_suffix('').as_posix()}"
            if path.suffix == ".png":
                pictures[name] = wandb.Image(str(path))
            elif path.suffix == ".svg":
                pictures[name] = wandb.Html(path.read_text("utf-8"))
        if pictures:
            self._run.log(pictures)
        name = re.sub(r"[^\w.-]", "-", f"{self._config.name}-{self._run.id}")
        artifact = wandb.Artifact(name, type="result")
        for path in files:
            artifact.add_file(str(path), path.relative_to(folder).as_posix())
        for path in reports:
            artifact.add_file(str(path), path.name)
        self._run.log_artifact(artifact)


def _forget_attempt() -> None:
    """Stop W&B's service: after a failed start it holds the run's id, and refuses it to the next one."""
    import wandb

    wandb.teardown()


def _leave_agent() -> None:
    """Forget the agent of a W&B sweep: to W&B every later run of this process would be the same one."""
    if "WANDB_SWEEP_ID" not in os.environ:
        return
    import wandb

    for name in AGENTS:
        os.environ.pop(name, None)
    wandb.teardown()  # it keeps what it read there
