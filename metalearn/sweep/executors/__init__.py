"""The launchers of a sweep by name. Nothing is imported before it is used."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.config import checked
from metalearn.registry import UserError, closest
from metalearn.sweep.executor import Executor
from metalearn.sweep.executors.options import SCHEMAS, LauncherOptions
from metalearn.work import Outcome, work

Work = Callable[[Sequence[str]], Outcome]
PARTS = {  # launcher: where its class is, and the package that it needs
    "processes": ("metalearn.sweep.executors.processes", "Processes", None),
    "joblib": ("metalearn.sweep.executors.loky", "Loky", "joblib"),
    "slurm": ("metalearn.sweep.executors.slurm_jobs", "SlurmJobs", "submitit"),
    "ray": ("metalearn.sweep.executors.ray_tasks", "RayTasks", "ray"),
}


def launcher_options(values: Mapping[str, Any]) -> LauncherOptions:
    """The node `launcher` of a composed configuration, checked. Raises UserError."""
    name = values.get("name")
    if name not in SCHEMAS:
        allowed = ", ".join(closest(str(name), list(SCHEMAS)))
        raise UserError(f"launcher: got {name!r}; choose one of: {allowed}")
    return checked(SCHEMAS[name], dict(values), "launcher.")


def build_executor(options: LauncherOptions, folder: Path, work: Work = work) -> Executor:
    """What runs the jobs; its own files go into `folder`, of the sweep. Raises UserError.

    `work` is importable by name and never raises. A missing package and more GPUs than there are on
    this machine are refused here, before any job has begun.
    """
    module, kind, package = PARTS[options.name]
    if package is not None:
        _require(options.name, package)
    return getattr(importlib.import_module(module), kind)(options, folder, work)


def _require(launcher: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"launcher={launcher} needs the package {package}: uv run --extra {launcher} metalearn ..."
        )
