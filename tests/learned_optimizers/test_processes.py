"""Meta-training by torchrun in two processes, each with its groups; one of them is then killed."""

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

from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.processes import Processes
from metalearn.registry import UserError

RUN = [
    "-m", "metalearn", "train", "method=learned_optimizer", "task=two_moons", "network=mlp", "rule=lstm",
    "task.batch=16", "network.hidden=[4]", "hypergradient=pes", "hypergradient.pairs=2", "rule.hidden=3",
    "rule.layers=1", "method.groups=4", "method.horizon=12", "method.unroll=4", "method.valid_problems=2",
    "method.test_problems=2", "method.horizons.draw=log_uniform", "method.horizons.shortest=4",
    "method.horizons.stagger=true", "method.particles=shared", "train.evaluate_every=0", "train.log_every=1",
    "train.monitor=null", "log=none", "machine=cpu", "machine.threads=1",
]  # fmt: skip
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(launcher, run_dir, steps, *changes):
    return subprocess.Popen(
        [sys.executable, *launcher, *RUN, f"run_dir={run_dir}", f"train.steps={steps}", *changes],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def end(process):
    said = process.communicate(timeout=240)[1]
    return process.returncode, said


def rows(run_dir):
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(run_dir):
    """The last checkpoint's state of the method."""
    path = sorted((run_dir / "checkpoints").glob("step_*.pt"))[-1]
    return torch.load(path, weights_only=True)["method"]


def rank(pid):
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(part.split(b"=", 1) for part in variables if b"=" in part).get(b"RANK", b"").decode()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    """The same rule and metrics, and the leader's checkpoint knows where the other's runs stand."""
    one, two = start([], tmp_path / "one", 7), start(TWO, tmp_path / "two", 7)
    for process in (one, two):
        code, said = end(process)
        assert code == 0, said
    learned = [load_file(tmp_path / name / "artifacts" / "optimizer.safetensors") for name in ("two", "one")]
    torch.testing.assert_close(*learned, rtol=1e-4, atol=1e-6)
    for alone, shared in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert shared == pytest.approx(alone, rel=1e-3)
    carries = [newest(tmp_path / name)["carries"] for name in ("two", "one")]
    assert len(carries[0]) == 4
    torch.testing.assert_close(*carries, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_lost_a_process_goes_on_in_one(tmp_path):
    """To the end that it would have had: nothing of the lost one's groups is missing."""
    run_dir = tmp_path / "run"
    process = start(TWO, run_dir, 100_000)
    until = time.monotonic() + 120
    while len(rows(run_dir)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    (follower,) = (int(child) for child in found.stdout.split() if rank(child) == "1")
    os.kill(follower, signal.SIGKILL)
    code, said = end(process)
    assert code != 0
    assert "to go on: metalearn train --config-dir" in said
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "interrupted"

    whole = tmp_path / "whole"
    assert end(start([], whole, status["step"]))[0] == 0
    stopped, expected = newest(run_dir), newest(whole)
    torch.testing.assert_close(stopped["meta"], expected["meta"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(stopped["carries"], expected["carries"], rtol=1e-3, atol=1e-4)


def test_groups_must_divide(kit):
    context = kit.context(kit.Blobs())
    context.machine.processes = Processes(0, 2)
    with pytest.raises(UserError, match=r"method.groups: got 3, must be a multiple of the processes, 2; set"):
        MetaTraining(kit.learned(groups=3), context)
