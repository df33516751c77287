"""One MAML run by torchrun in two processes, one of which is then killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RUN = [
    "-m", "metalearn", "train", "method=maml", "task=sinusoid", "network=mlp", "hypergradient=unrolled",
    "task.batch=4", "task.evaluated=8", "method.evaluation_steps=1", "train.evaluate_every=0",
    "train.monitor=null", "train.log_every=1", "log=none", "machine=cpu", "machine.threads=1",
]  # fmt: skip
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


def start(launcher, run_dir, steps):
    return subprocess.Popen(
        [sys.executable, *launcher, *RUN, f"run_dir={run_dir}", f"train.steps={steps}"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def end(process):
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def rows(run_dir):
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learned(run_dir):
    return load_file(run_dir / "artifacts" / "initialisation.safetensors")


def test_two_processes_learn_what_one_does(tmp_path):
    one, two = start([], tmp_path / "one", 6), start(TWO, tmp_path / "two", 6)
    for process in (one, two):
        code, said = end(process)
        assert code == 0, said
    assert "Traceback" not in said
    torch.testing.assert_close(learned(tmp_path / "two"), learned(tmp_path / "one"), rtol=1e-4, atol=1e-6)
    for alone, shared in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert shared == pytest.approx(alone, rel=1e-4)


def test_killing_one_process_leaves_a_run_to_go_on_with(tmp_path):
    process, workers = under_way(tmp_path / "run")
    os.kill(workers["1"], signal.SIGKILL)
    code, said = end(process)
    assert code != 0
    assert "to go on: metalearn train --config-dir" in said
    assert_can_go_on(tmp_path / "run")


def test_killing_torchrun_ends_its_processes(tmp_path):
    process, workers = under_way(tmp_path / "run")
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers.values()):
        assert time.monotonic() < until, "workers go on without torchrun"
        time.sleep(0.1)
    assert_can_go_on(tmp_path / "run")


def under_way(run_dir):
    """torchrun in the middle of a long run, and the process id of each rank."""
    process = start(TWO, run_dir, 100_000)
    until = time.monotonic() + 90
    while len(rows(run_dir)) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return process, {_rank(child): int(child) for child in found.stdout.split()}


def assert_can_go_on(run_dir):
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "interrupted"
    checkpoints = list((run_dir / "checkpoints").glob(f"step_{status['step']:010d}.pt"))
    assert len(checkpoints) == 1
    assert [row["step"] for row in rows(run_dir)] == list(range(1, status["step"] + 1))


def _rank(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
        variables = dict(part.split(b"=", 1) for part in file.read().split(b"\0") if b"=" in part)
    return variables.get(b"RANK", b"").decode()
