"""How soon the command line answers: help, a composed configuration, and configuration errors.

`uv run python -m benchmarks.startup [--save]`. Goal: 0.6 s of wall time each.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

from benchmarks.measure import measure, report

COMMANDS = {
    "metalearn --help": ["--help"],
    "metalearn list recipes": ["list", "recipes"],
    "metalearn train --cfg job": ["train", "--cfg", "job"],
    "wrong task name": ["train", "task=digit"],
    "wrong key": ["train", "train.step=3"],
    "value out of range": ["train", "method.learning_rate=-1"],
}


def _run(arguments: list[str], folder: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "metalearn", *arguments], cwd=folder, capture_output=True, check=False
    )


def main() -> None:
    """Fresh processes, page cache warm."""
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], object]] = {
            name: partial(_run, arguments, folder) for name, arguments in COMMANDS.items()
        }
        table = measure(contenders)
    report("Startup: fresh processes, wall time counts", table, "--save" in sys.argv)


if __name__ == "__main__":
    main()
