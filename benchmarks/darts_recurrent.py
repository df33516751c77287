"""One step of the search for a recurrent cell: `uv run python -m benchmarks.darts_recurrent`.

A step is one of alpha and one of the weights, at the shapes of Penn Treebank: 10,000 words, 300 units, 8
nodes, batch 32 of 35 words, float32. Contenders, in first and in second order:

- `as the peers run it`: our plain network the way quark0/darts runs it: in the passes of both steps a
  backward pass to all that could be differentiated, a second network for the unrolled weights
- `plain`: machine.fused=false
- `fused, no compiler`: in torch's operations
- `fused`: with the compiled kernel

The bound beside them is what the products of matrices alone would take at the speed of one large product.
No peer with this step can be installed; for reference, CPU ms at one thread on 2026-11-21 (2 vCPU AMD EPYC,
torch 2.13), median (least): quark0 first order 3543 (2857), 1619 MB; second order 6921 (6544), 1781 MB.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest.mock import patch

import torch
from torch import Tensor, nn

import tasks  # noqa: F401
from benchmarks.measure import measure, report
from metalearn import registry
from metalearn.compose import compose
from metalearn.config import Config
from metalearn.darts.search import Darts
from metalearn.darts.space import Mixture
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.network import Network
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from metalearn.tree import Tree

ORDERS = {"first order": "first_order", "second order": "finite_difference"}
WORDS, ROWS, TIME, UNITS, NODES = 10_000, 32, 35, 300, 8
PASSES = {"first order": (2, 2, 1), "second order": (5, 5, 3)}  # forward, by activations, by weights
STEPS = 1000  # of the schedule; the benchmark makes fewer


class Noise(Task):
    """Random words: a step's time does not depend on what it reads."""

    spec = TaskSpec("noise", "language_model", (), WORDS, {}, "perplexity", "", "", "", "")

    def __init__(self, device: torch.device) -> None:
        self.words = torch.randint(WORDS, (ROWS, TIME + 1), generator=generator("noise")).to(device)

    def batch(self, split: Split, index: int) -> Batch:
        return Batch(self.words[:, :-1], self.words[:, 1:], (split, index))

    def batches(self, split: Split) -> int:  # noqa: ARG002
        return STEPS

    def sweep(self, split: Split) -> Iterator[Batch]:
        yield self.batch(split, 0)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), batch.y.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


class PeerSearch:
    """The search step as the peers run it (their rnn/architect.py), on our plain supernet."""

    def __init__(self, network: nn.Module, task: Task, second_order: bool) -> None:
        self.network, self.task, self.second_order = network.train(), task, second_order
        self.alpha = torch.zeros(36, 5, requires_grad=True)
        self.alpha_optimizer = torch.optim.Adam([self.alpha], lr=3e-3, weight_decay=1e-3)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=20.0, weight_decay=5e-7)
        self.states: dict[str, Tree | None] = {"train": None, "valid": None}

    def step(self, index: int) -> Tensor:
        """As `Darts.step`."""
        train, valid = self.task.batch("train", index), self.task.batch("valid", index)
        self.alpha_optimizer.zero_grad()
        if self.second_order:
            self._unrolled(train, valid)
        else:
            self._loss(self.network, valid, "valid")[0].backward()
        self.alpha_optimizer.step()
        self.optimizer.zero_grad()
        loss, penalty, state = self._loss(self.network, train, "train")
        (loss + penalty).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.25)
        self.optimizer.step()
        self.states["train"] = state
        return loss.detach()

    def _loss(self, network: nn.Module, batch: Batch, split: str) -> tuple[Tensor, Tensor, Tree]:
        mixture = Mixture({"cell": self.alpha.softmax(dim=-1)})
        output = network(batch.x, self.states[split], mixture)
        state = {key: leaf.detach() for key, leaf in output.state.items()}
        if split == "valid":
            self.states["valid"] = state
        return self.task.loss(output.logits, batch), output.penalty, state

    def _unrolled(self, train: Batch, valid: Batch) -> None:
        params = list(self.network.parameters())
        grads = torch.autograd.grad(self._loss(self.network, train, "train")[0], params)
        unrolled = copy.deepcopy(self.network)
        with torch.no_grad():
            for leaf, grad in zip(unrolled.parameters(), grads, strict=True):
                leaf.sub_(grad)
        self._loss(unrolled, valid, "valid")[0].backward()
        direction = [leaf.grad for leaf in unrolled.parameters() if leaf.grad is not None]
        radius = float(0.01 / torch.cat([grad.flatten() for grad in direction]).norm())
        sides = []
        for shift in (radius, -2 * radius):
            self._move(direction, shift)
            loss = self._loss(self.network, train, "train")[0]
            sides.append(torch.autograd.grad(loss, self.alpha)[0])
        self._move(direction, radius)
        assert self.alpha.grad is not None
        self.alpha.grad -= (sides[0] - sides[1]) / (2 * radius)

    @torch.no_grad()
    def _move(self, direction: list[Tensor], by: float) -> None:
        for leaf, grad in zip(self.network.parameters(), direction, strict=True):
            leaf.add_(grad, alpha=by)


def contenders(order: str, device: str) -> dict[str, Callable[[], object]]:
    """By name, searches that make their next step at each call."""
    made = {f"{order}, as the peers run it": _peer(order, device)}
    for name, fused, compiler in (
        ("plain", False, True),
        ("fused, no compiler", True, False),
        ("fused", True, True),
    ):
        made[f"{order}, {name}"] = _ours(_config(order, device, fused), compiler)
    return made


def _config(order: str, device: str, fused: bool) -> Config:
    switches = [f"machine={device}", f"machine.fused={str(fused).lower()}", f"hypergradient={ORDERS[order]}"]
    return compose(["recipe=darts/ptb_search", *switches])


def _ours(config: Config, compiler: bool) -> Callable[[], object]:
    machine, task, network = _parts(config)
    estimator = registry.build("hypergradient", config.hypergradient)
    search = Darts(config.method, Context(task, lambda: network, estimator, machine, 0, STEPS))
    return _stepping(search.step, compiler)


def _peer(order: str, device: str) -> Callable[[], object]:
    _, task, network = _parts(_config(order, device, False))
    return _stepping(PeerSearch(network, task, order == "second order").step, False)


def _parts(config: Config) -> tuple[Machine, Noise, Network]:
    machine = Machine(config.machine)
    task = Noise(machine.device)
    with seeded("network"):
        network = registry.build("network", config.network, spec=task.spec).to(machine.device)
    return machine, task, network


def _stepping(step: Callable[[int], object], compiler: bool) -> Callable[[], object]:
    indices = iter(range(STEPS))

    def call() -> object:
        with (
            nullcontext() if compiler else patch("metalearn.darts.recurrent.scan.library", return_value=None)
        ):
            return step(next(indices))

    return call


def bound(order: str) -> float:
    """CPU milliseconds that a step's products of matrices take at the speed of one of 1536^3, best of ten."""
    edges = NODES * (NODES + 1) // 2
    products = ROWS * TIME * UNITS * ((edges + 2) * 2 * UNITS + WORDS)  # multiply-adds of one pass
    factor = torch.randn(1536, 1536)
    seconds = []
    for _ in range(10):
        start = time.process_time()
        torch.mm(factor, factor)
        seconds.append(time.process_time() - start)
    return 1e3 * sum(PASSES[order]) * products * min(seconds) / 1536**3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--machine", default="auto")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    chosen = parser.parse_args()
    for order in chosen.orders:
        rows = measure(contenders(order, chosen.machine), chosen.rounds)
        torch.set_num_threads(1)
        title = f"DARTS recurrent search step {order}: products alone would take {bound(order):.0f} ms"
        report(title, rows, chosen.save)


if __name__ == "__main__":
    main()
