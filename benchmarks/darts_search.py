"""One step of the architecture search by estimator, small shape: `uv run python -m benchmarks.darts_search`.

3 cells, 8 channels, batch 32, 3x32x32, float32; a step is one of alpha and one of the weights.
No peer with this step can be installed beside us. For reference only, CPU ms at one thread on 2026-11-21
(2 vCPU AMD EPYC, torch 2.13): quark0/darts 4027 first and 8483 second order, khanrc/pt.darts 3990 and 8271.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import tasks  # noqa: F401
from benchmarks.measure import measure, report
from metalearn import registry
from metalearn.compose import compose
from metalearn.config import Config
from metalearn.darts.search import Darts
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec

ESTIMATORS = {
    "first order": "first_order",
    "second order": "finite_difference",
    "second order, exact": "unrolled",
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


def contender(config: Config, batch: int) -> Callable[[], object]:
    """A search that makes its next step at each call."""
    machine = Machine(config.machine)
    task = Noise(batch, machine.device)

    def network() -> torch.nn.Module:
        with seeded("network"):
            return registry.build("network", config.network, spec=task.spec).to(machine.device)

    estimator = registry.build("hypergradient", config.hypergradient)
    search = Darts(config.method, Context(task, network, estimator, machine, 0, STEPS))  # type: ignore[arg-type]
    indices = iter(range(STEPS))
    return lambda: search.step(next(indices))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--machine", default="auto")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    shape = parser.parse_args()
    common = ["method=darts", "network=darts_supernet", f"machine={shape.machine}"]
    common += [f"network.cells={shape.cells}", f"network.channels={shape.channels}"]
    contenders = {
        name: contender(compose([*common, f"hypergradient={estimator}"]), shape.batch)
        for name, estimator in ESTIMATORS.items()
    }
    title = f"DARTS search step: {shape.cells} cells, C={shape.channels}, batch {shape.batch}, 3x32x32"
    report(title, measure(contenders, shape.rounds), shape.save)


if __name__ == "__main__":
    main()
