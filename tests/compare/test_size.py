"""A tenth of what the benchmark compares, within a budget of processor time and memory."""

import json
import os
import random
import resource
import subprocess
import sys

import pytest

RUNS, ROWS = 100, 10_000
SECONDS = 10.0  # of user and system time, starting Python included; 5 are usual
MEGABYTES = 600  # 250 are usual
PEAK = (  # getrusage would begin with what this process holds
    "import sys\nfrom metalearn.cli import main\ntry: main()\n"
    "finally: print(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1],"
    " file=sys.stderr)"
)


@pytest.mark.slow
def test_a_hundred_runs_of_ten_thousand_rows(tmp_path):
    noise = random.Random(0)
    rows = [
        {"step": 10 * number, "train/loss": noise.random(), "train/error": noise.random()}
        | ({"valid/error": noise.random()} if number % 10 == 0 else {})
        for number in range(1, ROWS + 1)
    ]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    for number in range(RUNS):
        path = tmp_path / "runs" / str(number)
        path.mkdir(parents=True)
        (path / "run.yaml").write_text(
            f"seed: {number % 5}\nname: toy\ntask: {{name: digits}}\nmethod: {{rate: {number // 5}}}\n"
            "train: {monitor: valid/error, goal: min}\n"
        )
        (path / "status.json").write_text('{"state": "finished", "step": 100000, "message": ""}')
        (path / "metrics.jsonl").write_text(body)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, "compare", str(tmp_path / "runs"), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    assert int(ended.stderr.split()[-1]) / 1024 < MEGABYTES
    assert len((tmp_path / "out" / "compare.csv").read_text().splitlines()) == RUNS + 1
