"""One task of a meta-batch after the other: any network, any estimator, and the reference of every batch."""

from collections.abc import Iterator

import torch

from metalearn.hypergradient.base import Estimate, HyperGradient
from metalearn.maml.meta_batch import MetaGradient
from metalearn.maml.problem import FewShot
from metalearn.method import Situation
from metalearn.problem import inner_step
from metalearn.rng import Key, generator
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree, add, detach, scale, tree_map


def task_of(batch: Batch, number: int) -> Batch:
    """One task's examples, with a key of its own."""
    return Batch(batch.x[number], batch.y[number], (*batch.key, number))


def meta_gradient(
    tasks: list[tuple[int, Situation]], estimator: HyperGradient | None, key: tuple[Key, ...]
) -> MetaGradient:
    """The mean over `tasks`, each with its number in the meta-batch, of the hypergradient and its metrics.

    reptile's is minus the way of the inner run; the others' is the estimator's, fed by `key` and the number.
    """
    total: Tree = {}
    for number, situation in tasks:
        if estimator is None:
            estimate = _way(situation)
        else:
            estimate = estimator.estimate(*situation, generator(*key, number))
        told = {f"grad/{name}": leaf for name, leaf in estimate.grad.items()} | _judged(situation, estimate)
        total = add(total, told) if total else told
    means = scale(total, 1 / len(tasks))
    grad = {name.removeprefix("grad/"): leaf for name, leaf in means.items() if name.startswith("grad/")}
    metrics = {name: leaf for name, leaf in means.items() if not name.startswith("grad/")}
    return MetaGradient(grad, metrics["loss"], metrics)


def scores(problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int) -> Metrics:
    """The queries' metrics after 0, 1, ... `steps` inner steps, each [task steps+1]."""
    rows = []
    for number in range(len(support.x)):
        judge = task_of(query, number)
        places = trail(problem, meta, task_of(support, number), steps)
        rows.append([_metrics(problem, meta, params, judge) for params in places])
    return {
        quantity: torch.stack([torch.stack([found[quantity] for found in row]) for row in rows])
        for quantity in rows[0][0]
    }


def trail(problem: FewShot, meta: Tree, support: Batch, steps: int) -> Iterator[Tree]:
    """Where one task's inner run stands after 0, 1, ... `steps` steps."""
    meta = detach(meta)
    inner = problem.init(meta)
    yield inner.params
    for _ in range(steps):
        inner = inner_step(problem, meta, inner, support).detach()
        yield inner.params


def _way(situation: Situation) -> Estimate:
    """Reptile (Nichol et al. 2018): minus how far the inner run went."""
    problem, meta, inner, segment = situation
    meta = detach(meta)
    for batch in segment.inner:
        inner = inner_step(problem, meta, inner, batch).detach()
    zero = tree_map(torch.zeros_like, meta)
    grad = zero | {f"init/{name}": -delta for name, delta in inner.params.items()}
    with torch.no_grad():
        loss = problem.outer_loss(meta, inner.params, segment.outer[len(segment.inner)])
    return Estimate(grad, loss, inner)


def _judged(situation: Situation, estimate: Estimate) -> Metrics:
    """The query's metrics where the inner run ended, with what the estimator tells and its loss."""
    problem, meta, _, segment = situation
    assert isinstance(problem, FewShot)
    query = segment.outer[len(segment.inner)]
    return {
        **_metrics(problem, meta, estimate.carry.params, query),
        **estimate.metrics,
        "loss": estimate.loss,
    }


def _metrics(problem: FewShot, meta: Tree, params: Tree, query: Batch) -> Metrics:
    with torch.no_grad():
        return problem.judge(meta, params, query)[1]
