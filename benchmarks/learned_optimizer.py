"""One meta-training step of the LSTM optimizer: 20 steps on the MNIST perceptron, backward, Adam.

Ours beside `higher` with a differentiable optimizer for the same update, both to first order: 784-20-10,
batch 128, 15,910 coordinates, log-sign inputs, random data.
`uv run python -m benchmarks.learned_optimizer [--compile] [--save]`.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import higher
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import measure, report
from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.config import LearnedOptimizerOptions
from metalearn.learned_optimizers.meta_train import LearnedOptimizer
from metalearn.learned_optimizers.preprocess import log_sign
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.networks import Mlp
from metalearn.registry import build
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec


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
    """`LearnedOptimizer.step` at the start of a run, so that every call does the same."""
    config = compose(["recipe=learned_optimizers/mnist_mlp", "machine=cpu", *overrides])
    options: LearnedOptimizerOptions = config.method
    task, machine = Random(), Machine(config.machine)
    estimator = build("hypergradient", config.hypergradient)
    context = Context(task, lambda: Mlp(config.network, task.spec), estimator, machine, 0, 1)
    method = LearnedOptimizer(options, context)
    return lambda: method.step(0)


class Lstm(nn.Module):
    """The same optimizer from torch's own cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(2, 20), nn.LSTMCell(20, 20)])
        self.linear = nn.Linear(20, 1)

    def forward(self, gradient: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        features, after = log_sign(gradient, 10.0), []
        for cell, before in zip(self.cells, state, strict=True):
            after.append(cell(features, before))
            features = after[-1][0]
        return 0.1 * self.linear(features).squeeze(1), after


class LstmOptimizer(torch.optim.Optimizer):
    """What `higher` makes differentiable."""

    def __init__(self, params: Any, network: Lstm) -> None:
        super().__init__(params, {"network": network})

    def step(self, closure: Any = None) -> Any:
        raise NotImplementedError("it only runs inside higher")


class DifferentiableLstm(higher.optim.DifferentiableOptimizer):
    """All coordinates of all tensors in one product, as ours."""

    def _update(self, grouped_grads: Any, **_: Any) -> None:
        (group,), (grads,) = self.param_groups, grouped_grads
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        output, self.hidden = group["network"](flat, getattr(self, "hidden", [None, None]))
        parts = output.split([grad.numel() for grad in grads])
        for place, (leaf, part) in enumerate(zip(group["params"], parts, strict=True)):
            group["params"][place] = leaf + part.view_as(leaf)


def peer() -> Callable[[], object]:
    """The same step with `higher`: gradients are detached in its callback."""
    higher.register_optim(LstmOptimizer, DifferentiableLstm)  # type: ignore[arg-type]
    config = compose(["recipe=learned_optimizers/mnist_mlp"])
    task, lstm = Random(), Lstm()
    model = Mlp(config.network, task.spec).layers  # higher cannot patch an abstract class's heir
    adam = torch.optim.Adam(lstm.parameters(), config.method.learning_rate)

    def step() -> None:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=config.method.deviation)
        optimizer, losses = LstmOptimizer(model.parameters(), lstm), []
        with higher.innerloop_ctx(model, optimizer) as (fast, learner):
            for batch in task.drawn:
                losses.append(task.loss(fast(batch.x), batch))
                learner.step(losses[-1], grad_callback=lambda grads: [grad.detach() for grad in grads])
            adam.zero_grad()
            torch.stack(losses).sum().backward()
        adam.step()

    return step


def main() -> None:
    register_all()
    compiled = {"ours, compiled": ours(["machine.compile=true"])} if "--compile" in sys.argv else {}
    table = measure({"higher": peer(), "ours": ours([]), **compiled})
    report("Learned optimizer: meta-training step, MNIST perceptron", table, "--save" in sys.argv)


if __name__ == "__main__":
    main()
