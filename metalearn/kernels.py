"""Builds kernels in C with the system's compiler, once for each user, machine and kind of number."""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared")
PARALLEL = "-fopenmp"  # torch's own OpenMP is loaded already and has the same name
HEADERS = Path(__file__).parent  # the folder of those that sources may include
REALS = {torch.float32: "float", torch.float64: "double"}
PATIENCE = 60  # seconds that a compiler may take; it takes two


class Built(NamedTuple):
    """A library, or why there is none."""

    library: ctypes.CDLL | None
    reason: str = ""


@functools.cache
def build(dtype: torch.dtype, source: Path) -> Built:
    """The kernels of a file for numbers of `dtype`, built or from the cache; never raises."""
    compiler = _compiler()
    if dtype not in REALS:
        return Built(None, f"there are kernels for {', '.join(REALS.values())}, not for {dtype}")
    if compiler is None:
        return Built(None, "no C compiler: neither $CC nor cc, gcc or clang is on the path")
    try:
        return Built(ctypes.CDLL(str(_library(compiler, REALS[dtype], source))))
    except subprocess.CalledProcessError as error:
        return Built(None, f"{compiler} failed: {error.stderr.strip()}")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Built(None, f"{source.name} was not built: {error}")


def _compiler() -> str | None:
    wanted = os.environ.get("CC")
    names = [wanted] if wanted else ["cc", "gcc", "clang"]
    return next((path for path in map(shutil.which, names) if path), None)


def _library(compiler: str, real: str, source: Path) -> Path:
    """Where the library is, after building it if need be; a failure with OpenMP is tried without."""
    folder = _cache()
    path = folder / f"{source.stem}_{real}_{_digest(compiler, source)}.so"
    if path.exists():
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as room:
        made = Path(room) / path.name
        command = [compiler, *FLAGS, f"-I{HEADERS}", f"-DREAL={real}", str(source), "-o", str(made)]
        try:
            _run([*command, PARALLEL])
        except subprocess.CalledProcessError:
            _run(command)
        made.replace(path)
    return path


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def _cache() -> Path:
    """The cache of the whole package has the same environment variables."""
    named, base = os.environ.get("METALEARN_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    root = Path(named) if named else Path(base or Path("~/.cache").expanduser()) / "metalearn"
    return root / "kernels"


def _digest(compiler: str, source: Path) -> str:
    """Of all that decides what the compiler makes; `-march=native` is the processor's."""
    parts = [
        source.read_text(),
        *(header.read_text() for header in sorted(HEADERS.glob("*.h"))),
        " ".join(FLAGS),
        compiler,
        _run([compiler, "--version"]),
        _processor(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        found = re.findall(r"^(?:model name|flags)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = []
    return " ".join([platform.machine(), platform.processor(), *sorted(set(found))])
