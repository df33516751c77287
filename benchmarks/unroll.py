"""The exact hypergradient through K SGD steps of an MLP, of one task: `Unrolled` beside its peers.

`uv run python -m benchmarks.unroll [--save]`: a table for each K beside `higher`, `torchopt` and
`learn2learn` (plain SGD, which all of them know), and one of time and memory at K = 256 with momentum: the
plain unroll, the one that recomputes, and `higher`. The meta-parameters are a log L2 penalty for each weight
tensor; one call is one hypergradient, K inner steps forward and the backward pass through them. Peak memory
at K = 256 is that of a process of its own, over what it held after a call at K = 4.
"""

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks import measure as measuring
from benchmarks.measure import measure, report
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.inner_optimizers import sgd, sgd_slots
from metalearn.problem import Inner, Problem
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import Tree

RATE, LONG = 0.05, 256
Way = Callable[["Classifier", Tree, Segment], Tree]


class Classifier(Problem):
    """An MLP under SGD; meta: the logarithm of an L2 penalty for each of its tensors."""

    def __init__(self, module: nn.Module, momentum: float) -> None:
        self.module, self.momentum = module, momentum
        self.start = {key: leaf.detach().clone() for key, leaf in module.named_parameters()}

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        return Inner(self.start, sgd_slots(self.start) if self.momentum else {})

    def penalized(self, meta: Tree, params: list[Tensor], output: Tensor, batch: Batch) -> Tensor:
        """The inner loss of an output, for all contenders."""
        squares = torch.stack([leaf.square().sum() for leaf in params])
        return cross_entropy(output, batch.y) + meta["penalty"].exp() @ squares

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Tensor:
        output = functional_call(self.module, params, (batch.x,))
        return self.penalized(meta, list(params.values()), output, batch)

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:  # noqa: ARG002
        return sgd(inner.params, inner.slots, grads, RATE, self.momentum, 0.0)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Tensor:  # noqa: ARG002
        return cross_entropy(functional_call(self.module, params, (batch.x,)), batch.y)


def mlp(width: int) -> nn.Module:
    """784-width-width-10, tanh."""
    with seeded("benchmark"):
        return nn.Sequential(
            nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
        )


def segment(steps: int, batch: int) -> Segment:
    """Random images and labels: K training batches and one for the outer loss."""
    rng = generator("benchmark", "data")
    batches = [
        Batch(torch.randn(batch, 784, generator=rng), torch.randint(10, (batch,), generator=rng), (index,))
        for index in range(steps + 1)
    ]
    return Segment(batches[:steps], {steps: batches[steps]})


def ours(recompute: bool, problem: Classifier, meta: Tree, data: Segment) -> Tree:
    """The hypergradient by our engine."""
    estimator, rng = Unrolled(UnrolledOptions("unrolled", recompute)), generator("benchmark")
    return estimator.estimate(problem, meta, estimator.init(problem, meta, rng), data, rng).grad


def with_higher(problem: Classifier, meta: Tree, data: Segment) -> Tree:
    """The hypergradient by `higher`."""
    import higher

    leaves = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    optimizer = torch.optim.SGD(problem.module.parameters(), lr=RATE, momentum=problem.momentum)
    with higher.innerloop_ctx(problem.module, optimizer) as (net, inner):
        for batch in data.inner:
            inner.step(problem.penalized(leaves, list(net.parameters()), net(batch.x), batch))
        return _outer_gradient(net, leaves, data)


def with_torchopt(problem: Classifier, meta: Tree, data: Segment) -> Tree:
    """The hypergradient by TorchOpt's MetaSGD, which moves the module itself: it is put back afterwards."""
    import torchopt

    net, leaves = problem.module, {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    before = torchopt.extract_state_dict(net, by="reference")
    optimizer = torchopt.MetaSGD(net, lr=RATE, momentum=problem.momentum)
    for batch in data.inner:
        layers = [layer for layer in net.children() if isinstance(layer, nn.Linear)]
        params = [leaf for layer in layers for leaf in (layer.weight, layer.bias)]
        optimizer.step(problem.penalized(leaves, params, net(batch.x), batch))
    grad = _outer_gradient(net, leaves, data)
    torchopt.recover_state_dict(net, before)
    return grad


def with_learn2learn(problem: Classifier, meta: Tree, data: Segment) -> Tree:
    """The hypergradient by learn2learn's MAML: a clone that adapts."""
    import learn2learn

    leaves = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    learner = learn2learn.algorithms.MAML(problem.module, lr=RATE).clone()
    for batch in data.inner:
        learner.adapt(problem.penalized(leaves, list(learner.parameters()), learner(batch.x), batch))
    return _outer_gradient(learner, leaves, data)


def _outer_gradient(net: Callable[[Tensor], Tensor], leaves: Tree, data: Segment) -> Tree:
    last = data.outer[len(data.inner)]
    grads = torch.autograd.grad(cross_entropy(net(last.x), last.y), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


PLAIN, AGAIN = partial(ours, False), partial(ours, True)
PEERS: dict[str, Way] = {
    "higher": with_higher,
    "torchopt": with_torchopt,
    "learn2learn": with_learn2learn,
    "metalearn unrolled": PLAIN,
}
LONG_RUN: dict[str, Way] = {
    "metalearn unrolled": PLAIN,
    "metalearn unrolled, recompute": AGAIN,
    "higher": with_higher,
}


def contenders(
    ways: dict[str, Way], momentum: float, steps: int, width: int, batch: int
) -> dict[str, Callable[[], object]]:
    """All ways on the same problem, checked to give the same hypergradient."""
    problem, data = Classifier(mlp(width), momentum), segment(steps, batch)
    meta = {"penalty": torch.full((6,), -7.0)}
    expected = PLAIN(problem, meta, data)
    for way in ways.values():
        torch.testing.assert_close(way(problem, meta, data), expected, rtol=1e-3, atol=1e-5)
    return {name: partial(way, problem, meta, data) for name, way in ways.items()}


def peak(name: str, width: int, batch: int) -> float:
    """MB that one call at K = 256 takes over what this process holds before; for a fresh process.

    The short call before brings in what torch imports at first use.
    """
    problem, meta = Classifier(mlp(width), 0.9), {"penalty": torch.full((6,), -7.0)}
    short, long = segment(4, batch), segment(LONG, batch)
    LONG_RUN[name](problem, meta, short)
    measuring._reset_peak()
    before = measuring.peak_rss()
    LONG_RUN[name](problem, meta, long)
    return measuring.peak_rss() - before


def _peak_alone(name: str, width: int, batch: int) -> float:
    command = [sys.executable, "-m", "benchmarks.unroll", "--peak", name]
    command += ["--width", str(width), "--batch", str(batch)]
    return float(subprocess.check_output(command, text=True).split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in {"width": 64, "batch": 32, "rounds": 15}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    parser.add_argument("--peak", choices=list(LONG_RUN), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.peak:
        print(peak(options.peak, options.width, options.batch))
        return
    net = f"MLP 784-{options.width}-{options.width}-10, batch {options.batch}, float32"
    for steps in (5, 20, 100):
        calls = contenders(PEERS, 0.0, steps, options.width, options.batch)
        report(f"Unroll {steps}: SGD steps, {net}", measure(calls, options.rounds), options.save)
    calls = contenders(LONG_RUN, 0.9, LONG, options.width, options.batch)
    table = [
        row._replace(peak_rss=_peak_alone(row.name, options.width, options.batch))
        for row in measure(calls, max(options.rounds // 3, 1))
    ]
    title = f"Unroll {LONG}: SGD steps with momentum, {net}; peak memory over a fresh process's own"
    report(title, table, options.save)


if __name__ == "__main__":
    main()
