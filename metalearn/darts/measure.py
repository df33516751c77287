"""What tells that a search collapses, measured on some batches of alpha's data."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from metalearn.darts.config import MonitorOptions
from metalearn.darts.eigenvalue import dominant_eigenvalue
from metalearn.darts.genotype import AnyGenotype
from metalearn.darts.problem import ArchitectureProblem, Mix
from metalearn.darts.space import SearchSpace, one_path, running_statistics_kept, set_evaluation
from metalearn.hypergradient.guard import check_twice_differentiable, second_order
from metalearn.hypergradient.implicit import damped_hessian
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree, detach, gradient, require_grad


class Measure:
    """Measures on the first `options.batches` batches of alpha's data, the same ones at each measurement.

    So what moves from one measurement to the next is the search, not the draw. There is no dropout; batch
    normalisation uses the batch, and its running statistics are left alone.
    """

    def __init__(self, options: MonitorOptions, problem: ArchitectureProblem, params: Tree) -> None:
        self.options, self.problem, self.params = options, problem, detach(params)

    def gap(self, alpha: Tree, genotype: AnyGenotype) -> Metrics:
        """monitor/gap: how much higher the error (%; where there is none: the loss, nats) of the discretised
        network is than the supernet's, both with the supernet's weights; monitor/supernet is the latter."""
        network, like = self.problem.network, next(iter(alpha.values()))
        discrete = one_path(network.encode(genotype), like.detach())
        mixed = self._score(alpha, self.problem.mix)
        found = self._score(alpha, lambda _: discrete)
        return {"monitor/supernet": mixed, "monitor/gap": found - mixed}

    def eigenvalue(self, alpha: Tree, rng: torch.Generator) -> Metrics:
        """monitor/eigenvalue: the dominant one of the Hessian of the mean loss by alpha (Zela et al. 2020).

        The loss is the task's alone. The graph of its gradient is kept for all of the products: the memory
        of a double backward pass of the plain supernet.
        """
        alpha = require_grad(alpha)
        with unregularised(self.problem.network), second_order("method.monitor.eigenvalue"):
            problem, losses = self._problem(self.problem.mix), []
            for batch in self._batches(problem):
                losses.append(problem.inner_loss(alpha, self.params, batch))
            loss = torch.stack(losses).mean()
            check_twice_differentiable(loss, alpha)
            slopes = gradient(loss, alpha, create_graph=True)
            start = {key: torch.randn(leaf.shape, generator=rng).to(leaf) for key, leaf in alpha.items()}
            product = damped_hessian(slopes, alpha, 0.0)
            value = dominant_eigenvalue(self.options.eigenvalue, product, start, self.options.iterations)
        return {"monitor/eigenvalue": value}

    @torch.no_grad()
    def _score(self, alpha: Tree, mix: Mix) -> Tensor:
        with unregularised(self.problem.network):
            problem, values = self._problem(mix), []
            for batch in self._batches(problem):
                metrics = problem.task.metrics(problem.score(alpha, self.params, batch).logits, batch)
                values.append(metrics.get("error", metrics["loss"]).double())
        return torch.stack(values).mean()

    def _problem(self, mix: Mix) -> ArchitectureProblem:
        """The problem under another mixture, with hidden states of its own."""
        problem = self.problem
        return ArchitectureProblem(
            problem.task, problem.network, problem.machine, problem.options, mix, problem.learning_rate
        )

    def _batches(self, problem: ArchitectureProblem) -> Iterator[Batch]:
        """In order; with texts each takes up the last state of the one before."""
        state: Tree = {}
        for number in range(self.options.batches):
            batch = problem.task.batch(problem.options.alpha_split, number)  # type: ignore[arg-type]
            problem.hidden[batch.key] = state
            yield batch
            state = problem.states.get(batch.key, {})


@contextmanager
def unregularised(network: SearchSpace) -> Iterator[None]:
    """A block of evaluation by the batch's statistics and by plain operations, which have second derivatives.

    Afterwards the network is as it was before.
    """
    training, fused = network.training, network.fused
    set_evaluation(network, batch_statistics=True)
    network.fused = False
    try:
        with running_statistics_kept(network):
            yield
    finally:
        network.train(training)
        network.fused = fused
