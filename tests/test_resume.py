"""A run that is killed at a random moment and started again ends as an unbroken one, for each family."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

FAMILIES = {
    "darts": [
        "task=digits", "network=darts_supernet", "method=darts", "hypergradient=finite_difference",
        "task.batch=4", "network.cells=3", "network.nodes=2", "network.channels=2", "train.evaluate_every=0",
        "train.monitor=null", "train.test=false",
    ],
    "hypernetworks": [
        "task=python_docs", "network=hyperlstm_lm", "method=supervised", "task.batch=2", "task.time=8",
        "network.units=12", "train.evaluate_every=0", "train.monitor=null", "train.test=false",
    ],
    "learned_optimizers": [
        "task=quadratic", "network=point", "method=learned_optimizer", "hypergradient=unrolled", "rule=lstm",
        "task.batch=8", "method.horizon=20", "method.valid_problems=2", "train.monitor=valid/final_loss",
    ],
}  # fmt: skip
STEPS = 24


def _command(family, folder):
    budget = [
        f"train.steps={STEPS}",
        "train.checkpoint_every=7",
        "train.log_every=1",
        "train.evaluate_every=12",
    ]
    where = [f"run_dir={folder}", "machine=cpu", "machine.threads=1", "log=none", "log.progress=false"]
    return [sys.executable, "-m", "metalearn", "train", *budget, *where, *FAMILIES[family]]


def _rows(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_kill_and_rerun_equals_an_unbroken_run(family, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(_command(family, tmp_path / "whole"), check=True, env=environment, timeout=300)
    for kill_after in sorted(random.Random(family).sample(range(1, STEPS), 2)):
        process = subprocess.Popen(_command(family, tmp_path / "killed"), env=environment)
        while _rows(tmp_path / "killed") < kill_after and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run(_command(family, tmp_path / "killed"), check=True, env=environment, timeout=300)
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
