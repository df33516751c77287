"""How benchmarks measure: contenders interleaved in one process, at one thread, by process CPU time.

On a shared machine wall time alone means nothing; a process's CPU time (user + system) at one thread agrees
with quiet wall time within a few per cent. Wall time is given beside it.
"""

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "numpy", "higher", "torchopt", "learn2learn", "labml-nn")


class Row(NamedTuple):
    """One contender; times in milliseconds a call, memory in MB."""

    name: str
    cpu_median: float
    cpu_min: float
    wall_median: float
    wall_min: float
    steps_per_second: float  # by median wall time
    peak_rss: float  # of the whole process while this contender ran, worst round; nan where unknown
    ratio: float  # median CPU time over that of the first contender


class Sample(NamedTuple):
    """One call: seconds of CPU and of wall time, peak resident memory in MB."""

    cpu: float
    wall: float
    rss: float


def measure(contenders: dict[str, Callable[[], object]], rounds: int = 5) -> list[Row]:
    """Time the contenders round robin at one thread, after one call each to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for function in contenders.values():
        function()
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            samples[name].append(_sample(function))
    torch.set_num_threads(threads)
    base = statistics.median(sample.cpu for sample in next(iter(samples.values())))
    return [_row(name, timed, base) for name, timed in samples.items()]


def report(title: str, table: list[Row], save: bool) -> None:
    """Print the table with machine, versions, commit and date; with `save` also write it to results/.

    The files are named for the title's words before its first colon.
    """
    facts = {"date": _now(), "commit": _commit(), "machine": machine(), "versions": versions()}
    text = f"# {title}\n\n{_markdown(table)}\n\n" + "\n".join(
        f"{key}: {value}  " for key, value in facts.items()
    )
    print(text)
    if save:
        name = re.sub(r"[^a-z0-9]+", "_", title.partition(":")[0].lower()).strip("_")
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text + "\n")
        record = {"title": title, **facts, "rows": [row._asdict() for row in table]}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def machine() -> str:
    """Processor, cores, memory, graphics card and load, in one line."""
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{_processor()}, {os.cpu_count()} cores, {pages:.0f} GiB, {card}, load {load}, {platform.system()}"
    )


def versions() -> str:
    """Python and the packages that matter, in one line."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _sample(function: Callable[[], object]) -> Sample:
    gc.collect()
    _reset_peak()
    _wait()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    function()
    _wait()
    return Sample(_cpu_seconds() - cpu, time.perf_counter() - wall, peak_rss())


def _cpu_seconds() -> float:
    """User and system time of this process and of the children it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _row(name: str, samples: list[Sample], base: float) -> Row:
    cpu, wall = [s.cpu * 1e3 for s in samples], [s.wall * 1e3 for s in samples]
    middle = statistics.median(wall)
    return Row(
        name,
        statistics.median(cpu),
        min(cpu),
        middle,
        min(wall),
        1e3 / middle,
        max(s.rss for s in samples),
        statistics.median(cpu) / (base * 1e3),
    )


def _markdown(table: list[Row]) -> str:
    lines = [
        "| contender | CPU ms, median (min) | wall ms, median (min) | steps/s | peak RSS MB | CPU ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.cpu_median:.2f} ({row.cpu_min:.2f}) "
        f"| {row.wall_median:.2f} ({row.wall_min:.2f}) "
        f"| {row.steps_per_second:.2f} | {row.peak_rss:.0f} | {row.ratio:.2f} |"
        for row in table
    ]
    return "\n".join(lines)


def _reset_peak() -> None:
    """Set the kernel's high-water mark back to the present size (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_rss() -> float:
    """The process's high-water mark in MB; that of getrusage would begin with what its parent held."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    return int(match[1]) / 1024 if match else float("nan")


def _processor() -> str:
    try:
        match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor()


def _commit() -> str:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
    result = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
