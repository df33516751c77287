"""The energy that a run takes, where the device tells it: NVIDIA's counters and Linux RAPL.

A counter tells of whole devices: what else ran on them is in it. Nothing here touches a number of the run.
"""

import contextlib
import importlib
import os
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

POWERCAP = Path("/sys/class/powercap")
POLL = 30.0  # s; the counter of a processor at 100 W starts over after 40 minutes
SAMPLE = 1000  # ms between nvidia-smi's samples of power
UNTOLD = "this device tells no energy"


class Counter(ABC):
    """Something that counts joules."""

    source: str

    @abstractmethod
    def joules(self) -> float:
        """Energy since the counter was made. Raises OSError or a driver's error when it has stopped."""

    def close(self) -> None:  # noqa: B027
        """Free what it holds."""


class Rapl(Counter):
    """Packages and memory of the processors: intel-rapl zones, which AMD's driver provides as well."""

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = list(zones)
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last = self._read()
        self._total = 0
        names = [(zone / "name").read_text().strip() for zone in self._zones]
        self.source = f"Linux RAPL: {', '.join(names)}"

    def joules(self) -> float:
        now = self._read()
        for value, before, size in zip(now, self._last, self._ranges, strict=True):
            self._total += value - before if value >= before else value - before + size  # it starts over
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


class Nvml(Counter):
    """The total energy counters of NVIDIA GPUs, Volta and later, in mJ since the driver was loaded."""

    def __init__(self, nvml: Any, identities: Sequence[str]) -> None:
        nvml.nvmlInit()
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByUUID(identity) for identity in identities]
        self._first = self._read()
        self.source = f"NVML total energy of {_count(len(self._handles), 'GPU')}"

    def joules(self) -> float:
        return (self._read() - self._first) / 1e3

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _read(self) -> int:
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)


class Power(Counter):
    """The power of NVIDIA GPUs as nvidia-smi samples it, added up over time."""

    def __init__(self, identities: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        command = ["nvidia-smi", f"--id={','.join(identities)}", "--query-gpu=power.draw"]
        form = ["--format=csv,noheader,nounits"]
        first = subprocess.run([*command, *form], capture_output=True, text=True, timeout=20, check=True)
        self._watts = [float(line) for line in first.stdout.split()]  # [N/A]: ValueError
        self._clock, self._since, self._total = clock, clock(), 0.0
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [*command, *form, f"--loop-ms={SAMPLE}"], stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._follow, daemon=True).start()
        self.source = f"nvidia-smi, power of {_count(len(identities), 'GPU')} every {SAMPLE / 1000:g} s"

    def joules(self) -> float:
        if self._process.poll() is not None:
            raise OSError("nvidia-smi has ended")
        with self._lock:
            self._add()
            return self._total

    def see(self, number: int, watts: float) -> None:
        """Take a sample of one GPU: the time since the last one ran at the power before."""
        with self._lock:
            self._add()
            self._watts[number] = watts

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _add(self) -> None:
        now = self._clock()
        self._total += sum(self._watts) * (now - self._since)
        self._since = now

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for position, line in enumerate(self._process.stdout):
            with contextlib.suppress(ValueError):
                self.see(position % len(self._watts), float(line))


class Meter:
    """All counters of a run. As a context manager it reads them now and then, lest one starts over unseen."""

    def __init__(self, counters: Sequence[Counter], reason: str = UNTOLD) -> None:
        self._counters, self._reason, self._failed = list(counters), reason, not counters
        self._lock, self._ended = threading.Lock(), threading.Event()

    @property
    def note(self) -> dict[str, str | None]:
        """What provenance says: where the energy is from, or why there is none."""
        source = " and ".join(counter.source for counter in self._counters)
        return {"source": source or None, "reason": None if source else self._reason}

    def joules(self) -> float | None:
        """Energy of the devices since the meter was made; None where it is not told, or no longer."""
        with self._lock:
            if self._failed:
                return None
            try:
                return sum(counter.joules() for counter in self._counters)
            except Exception:  # drivers have errors of their own, and no measurement ends a run
                self._failed = True
                return None

    def __enter__(self) -> "Meter":
        if self._counters:
            threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        with self._lock:
            self._failed = True
            for counter in self._counters:
                with contextlib.suppress(Exception):
                    counter.close()

    def _poll(self) -> None:
        while not self._ended.wait(POLL):
            self.joules()


def meter(gpus: Sequence[str], powercap: Path = POWERCAP, nvml: Any = None) -> Meter:
    """What this machine tells of a run on the GPUs with these UUIDs, and of its processors in any case.

    `nvml`: the module pynvml; None: the installed one, if there is one.
    """
    if _local_processes() < int(os.environ.get("WORLD_SIZE", "1")):
        return Meter([], "the run is on several machines, of which one alone could be read")
    counters: list[Counter] = []
    if gpus:
        counter = _of_gpus(gpus, nvml)
        if counter is None:
            return Meter([], "neither NVML nor nvidia-smi tells the GPU's energy")
        counters.append(counter)
    zones = _zones(powercap)
    try:
        counters += [Rapl(zones)] if zones else []
    except (OSError, ValueError):
        if not counters:
            return Meter([], f"{UNTOLD}: RAPL's counters are there, reading them is left to root")
    return Meter(counters)


def gpus() -> list[str]:
    """The UUIDs of the GPUs that the processes of this run on this machine use."""
    import torch

    count = _local_processes()
    first = torch.cuda.current_device() if count == 1 else 0
    properties = [torch.cuda.get_device_properties(first + number) for number in range(count)]
    return [f"GPU-{getattr(found, 'uuid', 'unknown')}" for found in properties]


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _of_gpus(identities: Sequence[str], nvml: Any) -> Counter | None:
    for make in (
        lambda: Nvml(nvml or importlib.import_module("pynvml"), identities),
        lambda: Power(identities),
    ):
        try:
            return make()
        except Exception:  # not installed, too old a GPU, no right: NVML has an error class for each
            continue
    return None


def _zones(powercap: Path) -> list[Path]:
    """Packages, and the memory beside them; cores and graphics are parts of a package, psys is the whole."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        if name.startswith("package") or name == "dram":
            found.append(zone)
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
