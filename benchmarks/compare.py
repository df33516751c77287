"""Comparing many runs: a fabricated sweep, read and written by `metalearn compare`.

`uv run python -m benchmarks.compare [--runs 1000] [--rows 10000] [--save]`. Goal: 10 s and 2 GB for 1,000
runs of 10,000 rows. The processes are fresh and the page cache is warm.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import measure, report

SEEDS = 5  # of a configuration
BODIES = 40  # different files of rows: of eight configurations
EVERY = 10  # rows between evaluations
STEP = 10  # steps between rows
PEAK = (  # getrusage would begin with what this process holds
    "import sys; from metalearn.cli import main\n"
    "try: main()\n"
    "finally: print(int(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1])"
    " / 1024, file=sys.stderr)"
)


def fabricate(folder: Path, runs: int, rows: int) -> Path:
    """Run directories of a sweep over learning rate and width: three metrics a row, two more at evaluations.

    The rows of run k + BODIES are those of run k.
    """
    bodies = [_body(number, rows) for number in range(min(runs, BODIES))]
    times = ({"step": n * STEP, "seconds": n * 0.01, "steps_per_second": 1e3} for n in range(1, rows + 1))
    timing = "".join(json.dumps(row) + "\n" for row in times)
    for number in range(runs):
        configuration, seed = divmod(number, SEEDS)
        path = folder / f"{configuration:04}_seed{seed}"
        (path / "artifacts").mkdir(parents=True)
        _write_run(path, seed, configuration, rows)
        (path / "metrics.jsonl").write_text(bodies[number % BODIES])
        (path / "timing.jsonl").write_text(timing)
    return folder


def _body(number: int, rows: int) -> str:
    noise = random.Random(number)
    return "".join(json.dumps(_row(row, rows, noise)) + "\n" for row in range(rows))


def _row(number: int, rows: int, noise: random.Random) -> dict[str, Any]:
    fall = math.exp(-5 * number / rows)
    row: dict[str, Any] = {"step": (number + 1) * STEP}
    row |= {f"train/{name}": 3 * fall + noise.random() for name in ("loss", "error", "gradient_norm")}
    if number % EVERY == EVERY - 1:
        row |= {f"valid/{name}": 3.3 * fall + noise.random() for name in ("loss", "error")}
    return row


def _write_run(path: Path, seed: int, configuration: int, rows: int) -> None:
    """Everything beside the rows, as the training loop leaves it."""
    method = {"name": "supervised", "learning_rate": 10 ** -(1 + configuration % 20 / 5), "momentum": 0.9}
    config = {
        "defaults": ["_self_"],
        "seed": seed,
        "name": "fabricated/sweep",
        "task": {"name": "digits", "batch": 32, "flip": False},
        "network": {"name": "mlp", "hidden": [16 * (1 + configuration // 20)]},
        "method": method | {f"option_{number}": number / 7 for number in range(40)},
        "train": {"steps": rows * STEP, "monitor": "valid/error", "goal": "min", "log_every": STEP},
        "machine": {"name": "cpu", "precision": "fp32", "threads": 1},
        "log": {"name": "none"},
    }
    (path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _write(path / "status.json", {"state": "finished", "step": rows * STEP, "message": ""})
    _write(path / "provenance.json", {"wandb_id": "0", "history": [], "task": {"comparable": True}})
    _write(path / "artifacts" / "summary.json", {"parameters": 1000 + configuration})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def compare(folder: Path, output: Path) -> float:
    """The whole command in a fresh process; its peak memory in MB. Raises RuntimeError."""
    command = [sys.executable, "-c", PEAK, "compare", str(folder), "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return float(ended.stderr.split()[-1])


def _noted(peaks: list[float], folder: Path, output: Path) -> None:
    peaks.append(compare(folder, output))


def main() -> None:
    """A tenth of the runs, then all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contenders, peaks = {}, {}
        for runs in (options.runs // 10, options.runs):
            name = f"{runs} runs of {options.rows} rows"
            place = fabricate(Path(folder) / str(runs), runs, options.rows)
            peaks[name] = []
            contenders[name] = partial(_noted, peaks[name], place, Path(folder) / "out" / str(runs))
        table = measure(contenders, options.rounds)
    table = [row._replace(peak_rss=max(peaks[row.name])) for row in table]
    report(
        "Compare: fresh processes, peak memory is theirs, goal 10 s of wall time and 2 GB",
        table,
        options.save,
    )


if __name__ == "__main__":
    main()
