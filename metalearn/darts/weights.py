"""How a supernet's weights learn and are scored in a search, whatever picks its architecture."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from metalearn.darts.config import WeightOptions
from metalearn.inner_optimizers import sgd
from metalearn.network import Output
from metalearn.problem import Inner
from metalearn.task import Batch, Metrics, Task
from metalearn.tree import Tree, clip_norm, gradient, require_grad


def learning_rate(options: WeightOptions, task: Task, index: int, steps: int) -> float:
    """The cosine at step `index` of `steps`; it ends at the floor."""
    start, end = options.learning_rate, options.final_learning_rate
    if options.schedule == "none":
        return start
    period = task.batches(options.weight_split) if options.schedule_every == "epoch" else 1  # type: ignore[arg-type]
    progress = (index // period) / max(1, steps / period)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def length_factor(options: WeightOptions, batch: Batch) -> float:
    """The learning rate is in proportion to the length of a sequence, if it has a nominal one."""
    return batch.x.shape[1] / options.nominal_time if options.nominal_time else 1.0


def descend(
    options: WeightOptions,
    task: Task,
    inner: Inner,
    batch: Batch,
    rate: float,
    score: Callable[[Tree], Output],
) -> tuple[Inner, Tensor]:
    """One clipped step on the task's loss and the network's own penalty; the loss, detached.

    `score` runs the network on the batch under weights, and may move its running statistics.
    """
    params = require_grad(inner.params)
    output = score(params)
    loss = task.loss(output.logits, batch)
    total = loss if output.penalty is None else loss + output.penalty
    grads = gradient(total, params)
    if options.clip is not None:
        grads = clip_norm(grads, options.clip)
    with torch.no_grad():
        stepped = sgd(*inner, grads, rate, options.momentum, options.weight_decay)
    return stepped.detach(), loss.detach()


def means(task: Task, batches: Iterable[Batch], score: Callable[[Batch, Tree], Output]) -> Metrics:
    """Mean metrics over all targets; `score` is given the hidden state that a batch starts from."""
    sums: Metrics = {}
    total, state = 0, {}
    for batch in batches:
        output = score(batch, state)
        state = output.state
        weight = batch.y.numel()
        total += weight
        for quantity, value in task.metrics(output.logits, batch).items():
            sums[quantity] = sums.get(quantity, torch.zeros_like(value).double()) + weight * value.double()
    found = {quantity: (value / total).float() for quantity, value in sums.items()}
    if task.spec.metric == "perplexity":
        found["perplexity"] = found["loss"].exp()
    return found


def copied(tree: Tree) -> Tree:
    """The same values in memory of their own."""
    return {key: leaf.detach().clone() for key, leaf in tree.items()}
