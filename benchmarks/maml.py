"""One meta-step of MAML: ours beside higher, learn2learn and torchopt, and one task beside higher.

One call is one mean hypergradient of a meta-batch of 16 tasks after 5 inner steps each: the sinusoid's
perceptron (1-40-40-1, 10 + 10 examples) or Omniglot's conv4 (64 channels, 5-way 1-shot) on images of its
shape. The peers loop over tasks, as they are meant to be used. Before timing, all must give the same
hypergradient.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metalearn.hypergradient  # noqa: F401  (registers the names)
from benchmarks.measure import measure, report
from metalearn.config import MachineOptions
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.machine import Machine
from metalearn.maml.config import Conv4Options, MamlOptions
from metalearn.maml.meta_batch import stacked_gradient, vmapped_gradient
from metalearn.maml.networks import Conv4
from metalearn.maml.problem import FewShot
from metalearn.network import Network
from metalearn.networks import Mlp
from metalearn.options import MlpOptions
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from metalearn.tree import Tree, norm, scale

MACHINE = MachineOptions(
    "cpu", "cpu", "fp32", compile=False, fused=True, deterministic=False, threads=1, timeout=60.0
)
Gradient = list[Tensor]  # by parameter, in the network's order


class FewShotLoss(Task):
    """Cross-entropy or mean squared error; the data are this file's."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        self.spec = TaskSpec("made", "few_shot", shape, outputs, {}, "loss", "", "", "", "", support=5)
        self.squared = outputs == 1

    def batch(self, split: Split, index: int) -> Batch:
        raise NotImplementedError

    def batches(self, split: Split) -> int:
        raise NotImplementedError

    def sweep(self, split: Split) -> Any:
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output, batch.y) if self.squared else F.cross_entropy(output, batch.y)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


class Work(NamedTuple):
    """A network, the same one as the peers take it, and a meta-batch."""

    network: Network
    module: nn.Module
    problem: FewShot
    support: Batch
    query: Batch
    steps: int

    def tasks(self) -> list[tuple[Batch, Batch]]:
        """Support and queries of each task."""
        return [
            (Batch(x, y, (t,)), Batch(query_x, query_y, (t,)))
            for t, (x, y, query_x, query_y) in enumerate(zip(*self.support[:2], *self.query[:2], strict=True))
        ]


def sinusoid(tasks: int, steps: int) -> Work:
    """10 + 10 examples of sine waves, learning rate 0.01."""
    with seeded("benchmark"):
        network = Mlp(MlpOptions("mlp", [40, 40], "relu", None), FewShotLoss((1,), 1).spec)
    x = 10 * torch.rand(tasks, 20, 1, generator=generator("x")) - 5
    y = torch.sin(x + torch.rand(tasks, 1, 1, generator=generator("phase")))
    return work(network, network.layers[1:], 0.01, x, y, 10, steps)


def omniglot(tasks: int, steps: int, queries: int) -> Work:
    """5 classes, one image each to adapt on, `queries` each to be scored on, learning rate 0.4."""
    with seeded("benchmark"):
        network = Conv4(Conv4Options("conv4", 64, "stride"), FewShotLoss((1, 28, 28), 5).spec)
    parts: list[nn.Module] = []
    for block in list(network.layers)[:4]:
        parts += [block.get_submodule("conv"), block.get_submodule("norm"), nn.ReLU()]
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.layers[-1])
    x = torch.rand(tasks, 5 * (1 + queries), 1, 28, 28, generator=generator("images"))
    y = torch.arange(5).repeat(tasks, 1 + queries)
    return work(network, module, 0.4, x, y, 5, steps)


def work(
    network: Network, module: nn.Module, rate: float, x: Tensor, y: Tensor, shots: int, steps: int
) -> Work:
    """The first `shots` examples of each task are its support."""
    values: dict[str, Any] = {"inner_learning_rate": rate, "proximal": 0.0, "vectorise": True}
    options = MamlOptions("maml", "maml", **values)
    outputs = 1 if y.is_floating_point() else 5
    problem = FewShot(FewShotLoss(tuple(x.shape[2:]), outputs), network, Machine(MACHINE), options)
    support, query = Batch(x[:, :shots], y[:, :shots], (0,)), Batch(x[:, shots:], y[:, shots:], (0,))
    return Work(network, module, problem, support, query, steps)


def ours(work: Work, path: Callable[..., Any]) -> Gradient:
    """One pass for all tasks."""
    meta = work.problem.start(work.network)
    return list(path(work.problem, meta, work.support, work.query, work.steps).grad.values())


def ours_looped(work: Work) -> Gradient:
    """The engine's `Unrolled` task by task."""
    estimator, rng = Unrolled(UnrolledOptions("unrolled", recompute=False)), generator("benchmark")
    meta, total, tasks = work.problem.start(work.network), None, work.tasks()
    for support, query in tasks:
        carry = estimator.init(work.problem, meta, rng)
        segment = Segment([support] * work.steps, {work.steps: query})
        grad = estimator.estimate(work.problem, meta, carry, segment, rng).grad
        total = grad if total is None else {key: total[key] + leaf for key, leaf in grad.items()}
    assert total is not None
    return list(scale(total, 1 / len(tasks)).values())


def with_higher(work: Work) -> Gradient:
    """`innerloop_ctx` task by task; gradients gather in the parameters."""
    import higher

    module, loss, tasks = work.module, work.problem.task.loss, work.tasks()
    optimizer = torch.optim.SGD(module.parameters(), lr=work.problem.options.inner_learning_rate)
    module.zero_grad()
    for support, query in tasks:
        with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (fast, inner):
            for _ in range(work.steps):
                inner.step(loss(fast(support.x), support))
            (loss(fast(query.x), query) / len(tasks)).backward()
    return gathered(module)


def with_learn2learn(work: Work) -> Gradient:
    """`clone` and `adapt` task by task; gradients gather in the parameters."""
    import learn2learn

    loss, tasks = work.problem.task.loss, work.tasks()
    meta_learner = learn2learn.algorithms.MAML(
        work.module, lr=work.problem.options.inner_learning_rate, first_order=False
    )
    meta_learner.zero_grad()
    for support, query in tasks:
        learner = meta_learner.clone()
        for _ in range(work.steps):
            learner.adapt(loss(learner(support.x), support))
        (loss(learner(query.x), query) / len(tasks)).backward()
    return gathered(work.module)


def with_torchopt(work: Work) -> Gradient:
    """`MetaSGD`, the module put back after each task; gradients gather in the parameters."""
    import torchopt

    module, loss, tasks = work.module, work.problem.task.loss, work.tasks()
    module.zero_grad()
    leaves = list(module.parameters())
    optimizer = torchopt.MetaSGD(module, lr=work.problem.options.inner_learning_rate)
    start = torchopt.extract_state_dict(module, by="reference")
    slots = torchopt.extract_state_dict(optimizer, by="reference")
    for support, query in tasks:
        for _ in range(work.steps):
            optimizer.step(loss(module(support.x), support))
        (loss(module(query.x), query) / len(tasks)).backward()
        torchopt.recover_state_dict(module, start)
        torchopt.recover_state_dict(optimizer, slots)
    return [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def gathered(module: nn.Module) -> Gradient:
    """What backward left in the parameters."""
    return [leaf.grad.clone() for leaf in module.parameters() if leaf.grad is not None]


PEERS = {"higher": with_higher, "learn2learn": with_learn2learn, "torchopt": with_torchopt}
OURS = {
    "metalearn stacked": lambda work: ours(work, stacked_gradient),
    "metalearn vmap": lambda work: ours(work, vmapped_gradient),
    "metalearn loop": ours_looped,
}


def contenders(work: Work, ways: dict[str, Callable[[Work], Gradient]]) -> dict[str, Callable[[], object]]:
    """The ways to compute it, once checked in float64 to give the same hypergradient."""
    parts = {"network": work.network.double(), "module": work.module.double()}
    double = work._replace(
        **parts,
        support=Batch(work.support.x.double(), _as(work.support.y), work.support.key),
        query=Batch(work.query.x.double(), _as(work.query.y), work.query.key),
    )
    found = {name: _tree(way(double)) for name, way in ways.items()}
    expected = next(iter(found.values()))
    for name, grad in found.items():
        error = norm({key: grad[key] - leaf for key, leaf in expected.items()}) / norm(expected)
        assert error < 1e-6, f"{name} differs by {error:.1e}"
    for module in (work.network, work.module):
        module.float()

    def run(way: Callable[[Work], Gradient]) -> Callable[[], object]:
        return lambda: way(work)

    return {name: run(way) for name, way in ways.items()}


def _as(y: Tensor) -> Tensor:
    return y.double() if y.is_floating_point() else y


def _tree(grads: Gradient) -> Tree:
    return {str(index): grad.detach() for index, grad in enumerate(grads)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in {"tasks": 16, "steps": 5, "rounds": 9}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 15], help="images a class, Omniglot")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    all_ways = {**PEERS, **OURS}
    one = {"higher": with_higher, "metalearn Unrolled": ours_looped}
    cases = [("sinusoid", sinusoid, ())] + [
        (f"Omniglot conv4 5-way 1-shot {queries} queries", omniglot, (queries,))
        for queries in options.queries
    ]
    for name, make, extra in cases:
        for tasks, ways in ((options.tasks, all_ways), (1, one)):
            table = measure(contenders(make(tasks, options.steps, *extra), ways), options.rounds)
            title = f"MAML {name} {tasks} tasks: one meta-step, {options.steps} inner steps, float32"
            report(title, table, options.save)


if __name__ == "__main__":
    main()
