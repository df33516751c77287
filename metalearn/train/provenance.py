"""What a run was made with: versions, commit, hardware. Nothing that names the machine or its user."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("metalearn", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")


def of_start(command: Sequence[str], seed: int) -> dict[str, Any]:
    """What is known when a run starts, before torch is imported."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "seed": seed,
        "versions": versions(),
        "git": git(),
    }


def versions() -> dict[str, str]:
    """Versions of Python, this suite and what its numbers hang on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git() -> dict[str, Any] | None:
    """Commit of this suite's checkout and whether it was altered; None outside a checkout."""
    here = Path(__file__).resolve().parent
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git(here, "rev-parse", "HEAD")
    changes = _git(here, "status", "--porcelain", "--untracked-files=no")
    if tracked is None or commit is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes)}


def hardware() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, memory in GiB and GPU."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def of_task(spec: Any) -> dict[str, Any]:
    """A TaskSpec as plain containers: digest, provenance, licence, whether figures are comparable."""
    return dataclasses.asdict(spec)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
