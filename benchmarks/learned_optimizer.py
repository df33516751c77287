"""One meta-training step of the LSTM optimizer: 20 steps on problems, backward, Adam; ours beside peers.

`uv run python -m benchmarks.learned_optimizer PART... [--save]`, all to first order, random data:
mnist: the perceptron 784-20-10, batch 128, 15,910 coordinates, log-sign inputs;
quadratics: 128 functions of 10 dimensions as one batch;
mnist_16: 16 such perceptrons side by side, beside a loop over `higher`;
quadratics_16, quadratics_128: as many functions, beside a loop over `higher` with one function each.
The floor is what torch's products, forward and backward, and its sigmoids and tanh take alone.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learned_optimizer_peers import UNROLL, Case, bare_lstm, with_higher, with_torchopt
from benchmarks.measure import measure, report
from metalearn.build import build_task
from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.networks import Mlp, Point
from metalearn.registry import build
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec

MNIST = ["recipe=learned_optimizers/mnist_mlp", "machine=cpu", "method.count_last=false"]
QUADRATIC = ["recipe=learned_optimizers/quadratic", "machine=cpu", "method.count_last=false"]
ROUNDS = {"mnist": 7, "quadratics": 15, "mnist_16": 3, "quadratics_16": 7, "quadratics_128": 5}
RECORDED = 1068, 162  # CPU ms of JAX's learned_optimization with the same LSTM, in anchors/performance.md


class Random(Task):
    """Batches of the shape of MNIST's, drawn once."""

    spec = TaskSpec("random", "classification", (1, 28, 28), 10, {"train": 1}, "loss", "random", "", "", "")

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        x, y = torch.rand(20, 128, 1, 28, 28, generator=rng), torch.randint(10, (20, 128), generator=rng)
        self.drawn = [Batch(x[step], y[step], (step,)) for step in range(20)]

    def batch(self, split: Split, index: int) -> Batch:  # noqa: ARG002
        return self.drawn[index % 20]

    def batches(self, split: Split) -> int:  # noqa: ARG002
        return 20

    def sweep(self, split: Split) -> Iterator[Batch]:  # noqa: ARG002
        yield from self.drawn

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.y)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


def ours(overrides: list[str]) -> Callable[[], object]:
    """`MetaTraining.step` at the start of a run, so that every call does the same."""
    config = compose(overrides)
    machine = Machine(config.machine)
    images = "mnist_mlp" in overrides[0]
    task = Random() if images else build_task(config, machine)
    estimator = build("hypergradient", config.hypergradient)

    def network(*_: object) -> Mlp | Point:
        return (Mlp if images else Point)(config.network, task.spec)

    context = Context(task, network, estimator, machine, 0, 1, rule=config.rule, mixture=config.mixture)
    method = MetaTraining(config.method, context)
    return lambda: method.step(0)


def perceptron() -> Case:
    """The same problem for peers."""
    task, config = Random(), compose(MNIST)
    network = Mlp(config.network, task.spec).layers  # higher cannot patch an abstract class's heir
    losses = [lambda model, batch=batch: task.loss(model(batch.x), batch) for batch in task.drawn]
    return Case(network, losses, 2, 0.1)


class At(nn.Module):
    """A point for each function."""

    def __init__(self, functions: int) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(functions, 10))

    def forward(self) -> Tensor:
        return self.point


def functions(count: int) -> Case:
    """Quadratics for peers, natively batched; the loss is their sum."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 10, 10, generator=rng), torch.randn(count, 10, generator=rng)

    def loss(model: Callable[[], Tensor]) -> Tensor:
        return ((x @ model().unsqueeze(2)).squeeze(2) - y).square().sum()

    return Case(At(count), [loss] * UNROLL, 1, 1.0)


def contenders(part: str) -> dict[str, Callable[[], object]]:
    if part == "mnist":
        one, plain = [perceptron()], ours([*MNIST, "machine.fused=false"])
        peers = {"higher": with_higher(one), "torchopt": with_torchopt(one), "floor": bare_lstm(15910, 2)}
        return {**peers, "ours, plain": plain, "ours": ours(MNIST)}
    if part == "quadratics":
        one, plain = [functions(128)], ours([*QUADRATIC, "machine.fused=false"])
        peers = {"higher": with_higher(one), "torchopt": with_torchopt(one), "floor": bare_lstm(1280, 1)}
        return {**peers, "ours, plain": plain, "ours": ours(QUADRATIC)}
    name, count = part.split("_")
    if name == "mnist":
        peers = {"higher, one by one": with_higher([perceptron() for _ in range(int(count))])}
        floor = bare_lstm(15910 * int(count), 2)
        return {**peers, "floor": floor, "ours": ours([*MNIST, f"method.problems={count}"])}
    loop = with_higher([functions(1) for _ in range(int(count))])
    return {"higher, one by one": loop, "ours": ours([*QUADRATIC, f"task.batch={count}"])}


TITLES = {
    "mnist": f"MNIST perceptron; learned_optimization in JAX, same LSTM, recorded: {RECORDED[0]} ms",
    "quadratics": f"128 quadratics; learned_optimization in JAX, same LSTM, recorded: {RECORDED[1]} ms",
    "mnist_16": "16 MNIST perceptrons side by side",
    "quadratics_16": "16 quadratics side by side",
    "quadratics_128": "128 quadratics side by side",
}


def main() -> None:
    register_all()
    for part in [part for part in TITLES if part in sys.argv] or ["mnist"]:
        table = measure(contenders(part), ROUNDS[part] if "--quick" not in sys.argv else 2)
        report(f"Learned optimizer {part}: meta-training step, {TITLES[part]}", table, "--save" in sys.argv)


if __name__ == "__main__":
    main()
