"""What this machine has room for: jobs at a time, and the GPUs and cores of each."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from metalearn.registry import UserError
from metalearn.sweep.executors.options import JoblibOptions, ProcessesOptions


class Place(NamedTuple):
    """Room for one job at a time."""

    devices: str | None  # its CUDA_VISIBLE_DEVICES; None: as this process has it
    cores: tuple[int, ...]  # cores of its own; (): any


def places(options: ProcessesOptions | JoblibOptions) -> list[Place]:
    """One place for each job at a time. Raises UserError for what this machine has not."""
    count = cores()
    if options.cpus > count:
        raise UserError(f"launcher.cpus: got {options.cpus}, this machine has {count}; lower it")
    visible = visible_devices()
    shares = portions(options.gpus, visible)
    jobs = options.jobs or min(
        count // options.cpus, len(shares) or count, _fitting_memory(options.memory) or count
    )
    if options.gpus and jobs > len(shares):
        raise UserError(
            f"launcher.jobs: got {jobs}, {options.gpus:g} GPUs a job leave {len(visible)} GPUs room for "
            f"{len(shares)}; lower one of them"
        )
    devices = shares or ([""] if visible else [None])
    own = _own_cores(options.cpus, jobs) if getattr(options, "pin", False) else [()]
    return [Place(devices[i % len(devices)], own[i % len(own)]) for i in range(jobs)]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Asks no torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return _all_devices()
    names = [name.strip() for name in named.split(",")]
    end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA stops there
    return names[:end]


def portions(gpus: float | None, visible: Sequence[str]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each job at a time, GPU by GPU; none where jobs use no GPU.

    Raises UserError if there are not as many as one job wants.
    """
    wanted = gpus if gpus is not None else float(bool(visible))
    if wanted > len(visible):
        raise UserError(
            f"launcher.gpus: got {wanted:g}, GPUs visible here: {len(visible)}; lower it, or use a cluster "
            "by launcher=slurm or launcher=ray"
        )
    if wanted > 1 and wanted % 1:
        raise UserError(f"launcher.gpus: got {wanted:g}, must be a whole number, or below 1 to share one GPU")
    if wanted < 1:
        return [*visible] * int(1 / wanted) if wanted else []
    each = int(wanted)
    starts = range(0, len(visible) - each + 1, each)
    return [",".join(visible[start : start + each]) for start in starts]


def _all_devices() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def _fitting_memory(memory: float | None) -> int | None:
    """How many jobs of `memory` GB this machine's memory holds; at least one is tried."""
    if memory is None:
        return None
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return max(1, int(there / memory))


def _own_cores(each: int, jobs: int) -> list[tuple[int, ...]]:
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("launcher.pin: this system gives no process cores of its own; set launcher.pin=false")
    mine = sorted(os.sched_getaffinity(0))
    if jobs * each > len(mine):
        raise UserError(
            f"launcher.pin: {jobs} jobs of {each} cores do not fit into {len(mine)}; lower launcher.jobs "
            "or launcher.cpus, or set launcher.pin=false"
        )
    return [tuple(mine[i * each : (i + 1) * each]) for i in range(jobs)]
