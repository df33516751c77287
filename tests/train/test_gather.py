"""What two real processes gather from each other."""

import sys

import pytest
from torch.distributed import run

from metalearn.processes import Processes

SCRIPT = """
import torch
from metalearn.processes import Processes

processes = Processes.from_environment(torch.device("cpu"), 60)

def thing(rank):
    odd = {"count": torch.tensor(1.5 + rank, dtype=torch.float64), "none": torch.ones(2, 0)}
    moved = torch.arange(6.0).view(2, 3).t()[rank:]
    flags = torch.tensor([True, False])
    parts = [torch.arange(3 + 2 * rank), None, odd]
    return {"parts": parts, "rank": rank, "flags": flags, "moved": moved}

def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b

found = processes.gather(thing(processes.rank))
assert same(found, [thing(0), thing(1)]), found
assert processes.gather({"only": processes.rank}) == [{"only": 0}, {"only": 1}]
processes.end()
"""


def test_one_process_gathers_what_it_gives():
    assert Processes().gather({"a": 1}) == [{"a": 1}]


@pytest.mark.slow
def test_two_processes_gather_trees_of_different_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "gathers.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", ["torchrun"])
    run.main(["--standalone", "--nproc-per-node", "2", str(script)])  # raises where one of them fails
