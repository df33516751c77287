"""The exact hypergradient through K SGD steps of an MLP: our `Unrolled` beside `higher`.

The meta-parameters are a log learning rate for each weight tensor and a weight decay. One call is one
hypergradient: K inner steps forward and the backward pass through them.
"""

import argparse
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.measure import measure, report
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.inner_optimizers import sgd, sgd_slots
from metalearn.problem import Inner, Problem
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import Tree

MOMENTUM = 0.9


class Classifier(Problem):
    """An MLP under SGD with momentum; meta = {"rate": learning rate, "decay": L2 penalty}."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.start = {key: leaf.detach().clone() for key, leaf in module.named_parameters()}

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        return Inner(self.start, sgd_slots(self.start))

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Tensor:
        penalty = torch.stack([leaf.square().sum() for leaf in params.values()]).sum()
        return self.outer_loss(meta, params, batch) + meta["decay"] * penalty

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        return sgd(inner.params, inner.slots, grads, meta["rate"], MOMENTUM, 0.0)

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


def ours(problem: Classifier, meta: Tree, data: Segment) -> Tree:
    """The hypergradient by our engine."""
    estimator, rng = Unrolled(UnrolledOptions("unrolled", False)), generator("benchmark")
    return estimator.estimate(problem, meta, estimator.init(problem, meta, rng), data, rng).grad


def with_higher(problem: Classifier, meta: Tree, data: Segment) -> Tree:
    """The hypergradient by `higher`."""
    import higher

    leaves = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    optimizer = torch.optim.SGD(problem.module.parameters(), lr=1.0, momentum=MOMENTUM)
    with higher.innerloop_ctx(problem.module, optimizer, override={"lr": [leaves["rate"]]}) as (net, inner):
        for batch in data.inner:
            penalty = torch.stack([leaf.square().sum() for leaf in net.parameters()]).sum()
            inner.step(cross_entropy(net(batch.x), batch.y) + leaves["decay"] * penalty)
        last = data.outer[len(data.inner)]
        grads = torch.autograd.grad(cross_entropy(net(last.x), last.y), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


def contenders(steps: int, width: int, batch: int) -> dict[str, Callable[[], object]]:
    """Both ways on the same problem, once checked to give the same hypergradient."""
    problem, data = Classifier(mlp(width)), segment(steps, batch)
    meta = {"rate": torch.tensor(0.05), "decay": torch.tensor(1e-4)}
    torch.testing.assert_close(
        ours(problem, meta, data), with_higher(problem, meta, data), rtol=1e-3, atol=1e-5
    )

    def run(function: Callable[[Classifier, Tree, Segment], Tree]) -> Callable[[], object]:
        return lambda: function(problem, meta, data)

    return {"higher": run(with_higher), "metalearn Unrolled": run(ours)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in {"steps": 20, "width": 64, "batch": 32, "rounds": 15}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="higher")
    title = f"Unroll: {options.steps} SGD steps, MLP 784-{options.width}-{options.width}-10"
    table = measure(contenders(options.steps, options.width, options.batch), options.rounds)
    report(f"{title}, batch {options.batch}, float32", table, options.save)


if __name__ == "__main__":
    main()
