"""Two real processes that share a run: the same parameters as one, and a clean end when one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metalearn.processes import Processes
from metalearn.registry import UserError

SCRIPT = Path(__file__).parent / "sharded_quadratic.py"


def start(size, run_dir, *arguments):
    """Start `size` processes as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(run_dir), *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def end(processes, seconds=60):
    """Their exit codes and what they said."""
    said = [process.communicate(timeout=seconds)[1] for process in processes]
    return [process.returncode for process in processes], said


def meta(run_dir):
    return torch.load(run_dir / "artifacts" / "meta.pt")


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def status(run_dir):
    return json.loads((run_dir / "status.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert end(start(1, run_dir, "12"))[0] == [0]
    return run_dir


def test_a_meta_batch_must_divide():
    assert list(Processes(1, 2).share(range(6))) == [1, 3, 5]
    with pytest.raises(UserError, match="6 tasks a meta-batch do not divide over 4 processes"):
        Processes(0, 4).share(range(6))


@pytest.mark.slow
def test_two_processes_end_where_one_does(alone, tmp_path):
    codes, said = end(start(2, tmp_path / "run", "12"))
    assert codes == [0, 0], said
    torch.testing.assert_close(meta(tmp_path / "run"), meta(alone))
    assert [row["step"] for row in rows(tmp_path / "run")] == [row["step"] for row in rows(alone)]
    codes, said = end(start(2, tmp_path / "run", "12"))  # finished: both see that there is nothing to do
    assert codes == [0, 0], said


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_two_others_go_on(alone, tmp_path):
    """The second process dies in the middle of step 7."""
    run_dir = tmp_path / "run"
    codes, said = end(start(2, run_dir, "12", "dies_at=7"))
    assert codes == [1, -signal.SIGKILL]
    assert "stopped after step 7" in said[0]
    assert "Traceback" not in said[0]
    assert (status(run_dir)["state"], status(run_dir)["step"]) == ("interrupted", 7)

    codes, said = end(start(2, run_dir, "12"))
    assert codes == [0, 0], said
    torch.testing.assert_close(meta(run_dir), meta(alone))
    assert [row["step"] for row in rows(run_dir)] == [row["step"] for row in rows(alone)]


@pytest.mark.slow
def test_a_killed_leader_ends_the_others(tmp_path):
    processes = start(2, tmp_path / "run", "1000", "seconds=0.05", "checkpoint_every=1")
    wait_for_rows(tmp_path / "run")
    processes[0].kill()
    codes, said = end(processes)
    assert codes == [-signal.SIGKILL, 1], said
    assert "another process of this run is gone" in said[1]


@pytest.mark.slow
def test_sigterm_to_all_ends_with_a_checkpoint(tmp_path):
    """As torchrun and schedulers send it."""
    processes = start(2, tmp_path / "run", "1000", "seconds=0.05")
    wait_for_rows(tmp_path / "run")
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, said = end(processes)
    assert codes == [128 + signal.SIGTERM, 0], said
    assert status(tmp_path / "run")["state"] == "interrupted"


def wait_for_rows(run_dir, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (run_dir / "metrics.jsonl").exists() and len(rows(run_dir)) > 2:
            return
        time.sleep(0.05)
    raise AssertionError("no row was written")
