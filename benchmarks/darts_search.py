"""One step of the architecture search, fused and plain: `uv run python -m benchmarks.darts_search`.

A step is one of alpha and one of the weights, on images 3x32x32 in float32. `--shape small`: 3 cells,
8 channels, batch 32; `--shape full`: 8 cells, 16 channels, batch 64, the paper's. Contenders, by order:

- `as the peers run it`: our plain network the way quark0/darts runs it, see `peer_search.py`
- `plain`: machine.fused=false
- `no compiler`: the fused form in torch's operations
- `fused`: with compiled kernels

No peer with this step can be installed beside us; what they cost is in PEERS: CPU ms at one thread and peak
RSS in MB on 2026-11-21 (2 vCPU AMD EPYC, torch 2.13).
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest.mock import patch

import torch
from torch import Tensor

import tasks  # noqa: F401
from benchmarks.measure import measure, peak_rss, report
from benchmarks.peer_search import PeerSearch
from metalearn import registry
from metalearn.compose import compose
from metalearn.config import Config
from metalearn.darts.search import Darts
from metalearn.darts.supernet import Supernet
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec

ORDERS = {"first order": "first_order", "second order": "finite_difference"}
CONTENDERS = ("as the peers run it", "plain", "fused, no compiler", "fused")
SHAPES = {"small": (3, 8, 32), "full": (8, 16, 64)}  # cells, channels, batch
PEERS = {
    "small": "quark0 first order 4027 ms, 1748 MB; second order 8483 ms, 2285 MB; "
    "khanrc first order 3990 ms; second order 8271 ms, 2300 MB",
    "full": "quark0 first order 32739 ms, 9743 MB; second order 70973 ms, 12913 MB; "
    "khanrc second order 73042 ms, 13347 MB",
}
STEPS = 1000  # of the schedule; the benchmark makes fewer


class Noise(Task):
    """Images of noise: a step's time does not depend on what it sees."""

    spec = TaskSpec("noise", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")

    def __init__(self, batch: int, device: torch.device) -> None:
        rng = generator("noise")
        self.x = torch.randn(batch, 3, 32, 32, generator=rng).to(device)
        self.y = torch.randint(10, (batch,), generator=rng).to(device)

    def batch(self, split: Split, index: int) -> Batch:
        return Batch(self.x, self.y, (split, index))

    def batches(self, split: Split) -> int:  # noqa: ARG002
        return 1

    def sweep(self, split: Split) -> Iterator[Batch]:
        yield self.batch(split, 0)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return torch.nn.functional.cross_entropy(output, batch.y)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


def contender(name: str, order: str, shape: str, device: str) -> Callable[[], object]:
    """A search that makes its next step at each call."""
    batch = SHAPES[shape][2]
    if name == CONTENDERS[0]:
        _, task, network = _parts(_config(order, shape, device, False), batch)
        return _stepping(PeerSearch(network, task, order == "second order").step, False)
    config = _config(order, shape, device, name != "plain")
    machine, task, network = _parts(config, batch)
    estimator = registry.build("hypergradient", config.hypergradient)
    search = Darts(config.method, Context(task, lambda: network, estimator, machine, 0, STEPS))  # type: ignore[arg-type]
    return _stepping(search.step, name != "fused, no compiler")


def peak(name: str, order: str, shape: str, device: str) -> float:
    """Peak resident memory in MB of a process that makes two steps at one thread, and nothing else."""
    command = [sys.executable, "-m", "benchmarks.darts_search", "--alone", name, "--orders", order]
    command += ["--shape", shape, "--machine", device]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(found.stdout.split()[-1])


def alone(name: str, order: str, shape: str, device: str) -> None:
    """What `peak` runs."""
    step = contender(name, order, shape, device)
    for _ in range(2):
        step()
    print(peak_rss())


def _config(order: str, shape: str, device: str, fused: bool) -> Config:
    cells, channels, _ = SHAPES[shape]
    return compose(
        [
            "method=darts",
            "network=darts_supernet",
            f"machine={device}",
            f"machine.fused={str(fused).lower()}",
            f"network.cells={cells}",
            f"network.channels={channels}",
            f"hypergradient={ORDERS[order]}",
        ]
    )


def _parts(config: Config, batch: int) -> tuple[Machine, Noise, Supernet]:
    machine = Machine(config.machine)
    task = Noise(batch, machine.device)
    with seeded("network"):
        network = registry.build("network", config.network, spec=task.spec).to(machine.device)
    return machine, task, network


def _stepping(step: Callable[[int], object], compiler: bool) -> Callable[[], object]:
    indices = iter(range(STEPS))

    def call() -> object:
        with nullcontext() if compiler else patch("metalearn.darts.fused.cell.kernels", return_value=None):
            return step(next(indices))

    return call


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--machine", default="auto")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--alone", choices=CONTENDERS, help="print this one's peak memory only")
    chosen = parser.parse_args()
    for order in chosen.orders:
        common = (order, chosen.shape, chosen.machine)
        if chosen.alone:
            alone(chosen.alone, *common)
            continue
        rows = measure({name: contender(name, *common) for name in CONTENDERS}, chosen.rounds)
        rows = [row._replace(peak_rss=peak(row.name, *common)) for row in rows]
        report(_title(order, chosen.shape), rows, chosen.save)


def _title(order: str, shape: str) -> str:
    cells, channels, batch = SHAPES[shape]
    return (
        f"DARTS search {shape} {order}: {cells} cells, C={channels}, batch {batch}, 3x32x32; memory of each "
        f"in a process of its own. Recorded of the peers: {PEERS[shape]}"
    )


if __name__ == "__main__":
    main()
