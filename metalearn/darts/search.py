"""The search of DARTS: alpha descends the validation loss, weights the training loss, in turn."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from metalearn.darts.config import DartsOptions
from metalearn.darts.result import write_result
from metalearn.darts.space import SearchSpace, running_statistics_kept
from metalearn.hypergradient.base import HyperGradient, Segment
from metalearn.inner_optimizers import sgd, sgd_slots
from metalearn.machine import Machine, full
from metalearn.method import Bilevel, Context, Situation
from metalearn.problem import Inner, Problem
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split, Task
from metalearn.tree import Tree, clip_norm, detach, gradient, require_grad, tree_map


class ArchitectureProblem(Problem):
    """Meta-parameters: alpha. Inner run: the supernet's weights by gradient descent.

    Batch normalisation uses the batch at hand in every loss, and no loss moves its running statistics.
    """

    def __init__(
        self, task: Task, network: SearchSpace, machine: Machine, options: DartsOptions, learning_rate: float
    ) -> None:
        self.task, self.network, self.machine = task, network, machine
        self.learning_rate = learning_rate  # xi, the step of the unrolled weights
        self.momentum = options.momentum if options.unroll_momentum else 0.0
        self.weight_decay = options.weight_decay if options.unroll_weight_decay else 0.0

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        """The network's own weights, no momentum."""
        params = {key: leaf.detach().clone() for key, leaf in self.network.named_parameters()}
        return Inner(params, sgd_slots(params))

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The task's loss of the supernet in training mode."""
        with running_statistics_kept(self.network):
            return self.task.loss(self.score(meta, params, batch), batch)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The same on another batch."""
        return self.inner_loss(meta, params, batch)

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:  # noqa: ARG002
        """The unrolled step: without clipping, as in the authors' code."""
        return sgd(inner.params, inner.slots, grads, self.learning_rate, self.momentum, self.weight_decay)

    def score(self, meta: Tree, params: Tree, batch: Batch) -> Tensor:
        """Logits of a batch under weights and alpha, in the mode the network is in."""
        with seeded(*batch.key), self.machine.autocast():
            return full(functional_call(self.network, params, (batch.x,), {"alpha": meta}).logits)


class Darts(Bilevel):
    """Alternates a step of alpha on `search_valid` and a step of the weights on `search_train`.

    The hypergradient says how alpha's gradient is had: first_order, finite_difference (the paper's second
    order) or unrolled. The test split is never read.
    """

    def __init__(self, options: DartsOptions, context: Context) -> None:
        self.hypergradient = _required(context.hypergradient)
        if context.machine.options.compile:
            raise UserError(
                "machine.compile: got true, the search has no compiled form; set machine.compile=false"
            )
        self.options, self.task, self.machine = options, context.task, context.machine
        self.seed, self.steps = context.seed, context.steps
        self.network = _searchable(context.network())
        self.alpha = self._start_alpha()
        self.alpha_optimizer = torch.optim.Adam(
            self.alpha.values(),
            lr=options.alpha_learning_rate,
            betas=(options.alpha_beta1, options.alpha_beta2),
            weight_decay=options.alpha_weight_decay,
        )
        self.inner = _inner_run(
            self.hypergradient.init(self._problem(0), self.alpha, generator(self.seed, "hypergradient"))
        )

    def step(self, index: int) -> Metrics:
        """Alpha first, then the weights under the new alpha."""
        self.network.train()
        problem, segment = self._problem(index), self._segment(index)
        rng = generator(self.seed, "hypergradient", index)
        estimate = self.hypergradient.estimate(problem, self.alpha, self.inner, segment, rng)
        for kind, leaf in self.alpha.items():
            leaf.grad = estimate.grad[kind]
        self.alpha_optimizer.step()
        loss = self._step_weights(problem, segment.inner[0])
        entropies = {f"alpha/entropy_{kind}": entropy(leaf.detach()) for kind, leaf in self.alpha.items()}
        return {"train/loss": loss, "search_valid/loss": estimate.loss, **estimate.metrics, **entropies}

    def situations(self, index: int) -> list[Situation]:
        """One inner step on `search_train`, scored on `search_valid`."""
        return [Situation(self._problem(index), self.alpha, self.inner, self._segment(index))]

    def _step_weights(self, problem: ArchitectureProblem, batch: Batch) -> Tensor:
        """The real step: clipped, and the one pass that moves the running statistics."""
        params = require_grad(self.inner.params)
        loss = self.task.loss(problem.score(detach(self.alpha), params, batch), batch)
        grads = gradient(loss, params)
        if self.options.clip is not None:
            grads = clip_norm(grads, self.options.clip)
        with torch.no_grad():
            self.inner = sgd(
                *self.inner, grads, problem.learning_rate, self.options.momentum, self.options.weight_decay
            ).detach()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, split: Split) -> Metrics:
        """`valid/loss`, `valid/error`: the supernet on the half that alpha learns on, so not held out.

        Batch normalisation uses the batch, for running statistics lag behind an architecture that moves
        (appendix A.1.1), or the running ones as in the authors' code. Beside them, how many edges of the
        genotype that alpha stands for now are skip connections. Raises UserError for the test split.
        """
        if split == "test":
            raise UserError("method darts: a search never reads the test split; set train.test=false")
        self.network.train(self.options.evaluation_statistics == "batch")
        problem, sums, total = self._problem(0), {}, 0
        with running_statistics_kept(self.network):
            for batch in self.task.sweep("search_valid"):
                metrics = self.task.metrics(problem.score(self.alpha, self.inner.params, batch), batch)
                total += len(batch.y)
                for quantity, value in metrics.items():
                    sums[quantity] = sums.get(quantity, 0.0) + len(batch.y) * value.double()
        self.network.train()
        means = {f"valid/{quantity}": (value / total).float() for quantity, value in sums.items()}
        return means | self._skips()

    def _skips(self) -> Metrics:
        found = self.network.discretise(self.alpha)
        cells = {"normal": found.normal, "reduce": found.reduce}
        return {
            f"genotype/skips_{kind}": torch.tensor(float(cell.count("skip_connect")))
            for kind, cell in cells.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, momenta, running statistics, alpha and alpha's optimizer."""
        return {
            "params": _copied(self.inner.params),
            "slots": _copied(self.inner.slots),
            "buffers": _copied(dict(self.network.named_buffers())),
            "alpha": _copied(self.alpha),
            "alpha_optimizer": copy.deepcopy(self.alpha_optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of the same network. Alpha stays the tensors that its optimizer holds."""
        put = self.machine.put
        self.inner = Inner(tree_map(put, state["params"]), tree_map(put, state["slots"]))
        with torch.no_grad():
            for key, buffer in self.network.named_buffers():
                buffer.copy_(state["buffers"][key])
            for kind, leaf in self.alpha.items():
                leaf.copy_(state["alpha"][kind])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])

    def artifacts(self, folder: Path) -> None:
        """`genotype.json`, `alpha.json`, and `cell_normal.svg`, `cell_reduce.svg`."""
        write_result(folder, self.network.discretise(self.alpha), self.alpha)

    def _start_alpha(self) -> Tree:
        rng = generator(self.seed, "alpha")
        scale = self.options.alpha_scale if self.options.alpha_init == "normal" else 0.0
        return {
            kind: self.machine.put(scale * torch.randn(shape, generator=rng)).requires_grad_()
            for kind, shape in self.network.alpha_shapes.items()
        }

    def _problem(self, index: int) -> ArchitectureProblem:
        return ArchitectureProblem(
            self.task, self.network, self.machine, self.options, self._learning_rate(index)
        )

    def _segment(self, index: int) -> Segment:
        return Segment([self.task.batch("search_train", index)], {1: self._valid_batch(index)})

    def _learning_rate(self, index: int) -> float:
        """The cosine at this step; it ends at the floor."""
        start, end = self.options.learning_rate, self.options.final_learning_rate
        period = self.task.batches("search_train") if self.options.schedule_every == "epoch" else 1
        progress = (index // period) / max(1, self.steps / period)
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2

    def _valid_batch(self, index: int) -> Batch:
        """ "fresh": the first batch of a new shuffle at each step, so the half is not swept in order."""
        if self.options.valid_batches == "fresh":
            index *= self.task.batches("search_valid")
        return self.task.batch("search_valid", index)


def entropy(alpha: Float[Tensor, "edge operation"]) -> Float[Tensor, ""]:
    """The mean over edges of the entropy of their softmax, in nats."""
    logs = alpha.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1).mean()


def _copied(tree: Tree) -> Tree:
    return {key: leaf.detach().clone() for key, leaf in tree.items()}


def _required(hypergradient: HyperGradient | None) -> HyperGradient:
    if hypergradient is None:
        raise UserError(
            "method darts: got hypergradient=none; choose hypergradient=finite_difference (the paper's "
            "second order), first_order or unrolled"
        )
    return hypergradient


def _inner_run(carry: Any) -> Inner:
    if not isinstance(carry, Inner):
        raise UserError(
            "method darts: this hypergradient keeps many inner runs, the search has one; choose "
            "hypergradient=finite_difference, first_order or unrolled"
        )
    return carry


def _searchable(network: Any) -> SearchSpace:
    if not isinstance(network, SearchSpace):
        raise UserError(
            f"method darts: {type(network).__name__} is no search space; choose network=darts_supernet"
        )
    return network
