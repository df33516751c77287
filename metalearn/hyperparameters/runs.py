"""Inner runs by number: their starts, their batches, and how they end."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import Segment
from metalearn.hyperparameters.problem import NetworkTraining
from metalearn.problem import Inner, loss_and_gradient
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split
from metalearn.tree import Tree

KINDS: tuple[Split, ...] = ("train", "valid", "test")  # what runs are for: learning, validation, the test


class Trained(NamedTuple):
    """How an inner run ended."""

    params: Tree
    losses: Float[Tensor, " step"]  # of the training batches, before each step, without penalty
    diverged: Float[
        Tensor, ""
    ]  # 1 if a loss or parameter left the finite; params are then those of the start


class Runs:
    """Run number `run` of a kind: the same start and the same batches, whatever the hyper-parameters.

    Runs of different kinds or numbers share neither the key of their start nor the index of a batch.
    """

    def __init__(self, problem: NetworkTraining, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.horizon = problem.options.horizon

    def stream(self, kind: Split, run: int) -> torch.Generator:
        """The randomness of a run's start."""
        return generator(self.seed, "hyperparameters", kind, run)

    def batches(self, kind: Split, run: int) -> list[Batch]:
        """The minibatches of `search_train` that the run takes its steps on."""
        first = self._place(kind, run) * self.horizon
        return [self.problem.task.batch("search_train", first + step) for step in range(self.horizon)]

    def outer_batch(self, kind: Split, run: int, count: int) -> Batch:
        """`count` minibatches of `search_valid` as one."""
        first = self._place(kind, run) * count
        found = [self.problem.task.batch("search_valid", first + part) for part in range(count)]
        if count == 1:
            return found[0]
        x, y = torch.cat([batch.x for batch in found]), torch.cat([batch.y for batch in found])
        return Batch(x, y, (*found[0].key, count))

    def segment(self, kind: Split, run: int, outer_batches: int, every: int) -> Segment:
        """The whole run, scored after its last step and, unless `every` is 0, after each `every` steps."""
        outer = self.outer_batch(kind, run, outer_batches)
        places = [*range(every, self.horizon, every)] if every else []
        return Segment(self.batches(kind, run), dict.fromkeys([*places, self.horizon], outer))

    def train(self, meta: Tree, kind: Split, run: int) -> Trained:
        """Take all steps of a run at `meta`; nothing is kept for derivatives."""
        problem, losses = self.problem, []
        start = inner = problem.init(meta, self.stream(kind, run))
        for batch in self.batches(kind, run):
            loss, grads = loss_and_gradient(problem, meta, inner.params, batch)
            with torch.no_grad():
                if problem.space.penalised:
                    loss = loss - problem.space.penalty(meta, inner.params)
                losses.append(loss.detach())
                inner = problem.update(meta, inner, grads)
        return _ended(start, inner, torch.stack(losses))

    @torch.no_grad()
    def score(self, params: Tree, split: Split) -> Metrics:
        """Means over every example of a split."""
        sums: dict[str, Tensor] = {}
        total = 0
        for batch in self.problem.task.sweep(split):
            total += len(batch.y)
            for quantity, value in self.problem.metrics(params, batch).items():
                sums[quantity] = sums.get(quantity, 0.0) + len(batch.y) * value.double()
        return {quantity: value / total for quantity, value in sums.items()}

    def _place(self, kind: Split, run: int) -> int:
        return run * len(KINDS) + KINDS.index(kind)


def _ended(start: Inner, inner: Inner, losses: Float[Tensor, " step"]) -> Trained:
    """A run that left the finite has learned nothing: it counts as one that stayed at its start."""
    whole = torch.stack([leaf.isfinite().all() for leaf in (losses, *inner.params.values())]).all()
    params = {name: torch.where(whole, leaf, start.params[name]) for name, leaf in inner.params.items()}
    return Trained(params, losses, (~whole).to(losses.dtype))
