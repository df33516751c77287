"""The search of DARTS: alpha descends the validation loss, weights the training loss, in turn."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.darts.architecture import Architecture, Masks, entropy
from metalearn.darts.config import DartsOptions
from metalearn.darts.problem import ArchitectureProblem
from metalearn.darts.result import write_result
from metalearn.darts.space import Mixture, SearchSpace, running_statistics_kept, set_evaluation
from metalearn.darts.weights import copied, descend, learning_rate, length_factor, means
from metalearn.hypergradient.base import HyperGradient, Segment
from metalearn.method import Bilevel, Context, Situation
from metalearn.network import Output
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split
from metalearn.tree import Tree, detach, tree_map


class Darts(Bilevel):
    """Alternates a step of alpha on `alpha_split` and a step of the weights on `weight_split`.

    The hypergradient says how alpha's gradient is had: first_order, finite_difference (the paper's second
    order) or unrolled. Texts are read as one sequence by both: hidden states are carried from batch to batch
    and start afresh with each pass over `weight_split`. The test split is never read.
    """

    def __init__(self, options: DartsOptions, context: Context) -> None:
        self.hypergradient = _required(context.hypergradient)
        if context.machine.options.compile:
            raise UserError(
                "machine.compile: got true, the search has no compiled form; set machine.compile=false"
            )
        self.options, self.task, self.machine = options, context.task, context.machine
        self.seed, self.steps = context.seed, context.steps
        self.recurrent = context.task.spec.kind == "language_model"
        self.network = _searchable(context.network())
        self.network.fused = _fused(context)
        self.architecture = Architecture(self.network.choices, options)
        self.allowed: Masks = {kind: choice.allowed for kind, choice in self.network.choices.items()}
        start = self.architecture.start(generator(self.seed, "alpha"))
        self.alpha = {kind: self.machine.put(leaf).requires_grad_() for kind, leaf in start.items()}
        self.alpha_optimizer = self._alpha_optimizer()
        self.hidden: dict[str, Tree] = {}  # by split, of recurrent networks
        self.inner = _inner_run(
            self.hypergradient.init(self._problem(0), self.alpha, generator(self.seed, "hypergradient"))
        )

    def step(self, index: int) -> Metrics:
        """Alpha first, then the weights under the new alpha."""
        self._begin(index)
        problem, segment = self._problem(index), self._segment(index)
        metrics: Metrics = {}
        if index >= self.options.warm_up:
            rng = generator(self.seed, "hypergradient", index)
            estimate = self.hypergradient.estimate(problem, self.alpha, self.inner, segment, rng)
            for kind, leaf in self.alpha.items():
                leaf.grad = estimate.grad[kind]
            self.alpha_optimizer.step()
            metrics = {"search_valid/loss": estimate.loss, **estimate.metrics}
        loss = self._step_weights(problem, segment.inner[0])
        self._carry(problem, segment)
        return {"train/loss": loss, **metrics, **self._entropies()}

    def _begin(self, index: int) -> None:
        """Put the network where this step wants it."""
        self.network.train()
        self.network.progress = index / self.steps
        if index % self.task.batches(self._weight_split) == 0:
            self.hidden = {}

    def situations(self, index: int) -> list[Situation]:
        """One inner step on `weight_split`, scored on `alpha_split`."""
        return [Situation(self._problem(index), self.alpha, self.inner, self._segment(index))]

    def _step_weights(self, problem: ArchitectureProblem, batch: Batch) -> Tensor:
        """The real step: clipped, with the network's own penalty, and the one that moves the statistics."""
        alpha = detach(self.alpha)
        self.inner, loss = descend(
            self.options,
            self.task,
            self.inner,
            batch,
            problem.learning_rate,
            lambda params: problem.score(alpha, params, batch),
        )
        return loss

    def _carry(self, problem: ArchitectureProblem, segment: Segment) -> None:
        """Keep the states that the next batches start from: those of the last pass over each."""
        batches = {self._weight_split: segment.inner[0], self._alpha_split: segment.outer[1]}
        for split, batch in batches.items():
            if batch.key in problem.states:
                self.hidden[split] = problem.states[batch.key]

    @torch.no_grad()
    def evaluate(self, split: Split) -> Metrics:
        """`valid/loss`, `valid/error`: the supernet on the data that alpha learns on, so not held out.

        Batch normalisation uses the batch, for running statistics lag behind an architecture that moves
        (appendix A.1.1), or the running ones as in the authors' code. Beside them, how many edges of the
        genotype that alpha stands for now are skip connections. Raises UserError for the test split.
        """
        if split == "test":
            raise UserError("method darts: a search never reads the test split; set train.test=false")
        set_evaluation(self.network, self.options.evaluation_statistics == "batch")
        with running_statistics_kept(self.network):
            found = self._sweep()
        self.network.train()
        skips = self.network.discretise(self._strengths()).skips()
        counts = {f"genotype/skips_{kind}": torch.tensor(float(count)) for kind, count in skips.items()}
        return {f"valid/{quantity}": value for quantity, value in found.items()} | counts

    def _sweep(self) -> Metrics:
        problem = self._problem(0)

        def score(batch: Batch, state: Tree) -> Output:
            problem.hidden[batch.key] = state
            return problem.score(self.alpha, self.inner.params, batch)

        return means(self.task, self.task.sweep(self._alpha_split), score)

    def state_dict(self) -> dict[str, Any]:
        """Weights, momenta, running statistics, alpha and alpha's optimizer, hidden states."""
        return {
            "params": copied(self.inner.params),
            "slots": copied(self.inner.slots),
            "buffers": copied(dict(self.network.named_buffers())),
            "alpha": copied(self.alpha),
            "alpha_optimizer": copy.deepcopy(self.alpha_optimizer.state_dict()),
            "allowed": copied(self.allowed),
            "hidden": {split: copied(state) for split, state in self.hidden.items()},
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
        self.allowed = state["allowed"]
        self.hidden = {split: tree_map(put, hidden) for split, hidden in state["hidden"].items()}

    def artifacts(self, folder: Path) -> None:
        """`genotype.json`, `alpha.json`, and `cell_normal.svg`, `cell_reduce.svg`."""
        strengths = self._strengths()
        found = self.network.discretise(strengths)
        write_result(folder, self.network, self.alpha, strengths, found)

    def _alpha_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(
            self.alpha.values(),
            lr=self.options.alpha_learning_rate,
            betas=(self.options.alpha_beta1, self.options.alpha_beta2),
            weight_decay=self.options.alpha_weight_decay,
        )

    def _strengths(self) -> Tree:
        """In double precision, so that close ones are told apart."""
        alpha = {kind: leaf.detach().double().cpu() for kind, leaf in self.alpha.items()}
        return self.architecture.strengths(alpha, self.allowed)

    def _entropies(self) -> Metrics:
        strengths = self.architecture.strengths(detach(self.alpha), self._masks())
        return {f"alpha/entropy_{kind}": entropy(leaf) for kind, leaf in strengths.items()}

    def _masks(self) -> Masks:
        return {kind: self.machine.put(mask) for kind, mask in self.allowed.items()}

    @property
    def _weight_split(self) -> Split:
        return self.options.weight_split  # type: ignore[return-value]

    @property
    def _alpha_split(self) -> Split:
        return self.options.alpha_split  # type: ignore[return-value]

    def _problem(self, index: int) -> ArchitectureProblem:
        progress, masks, hidden = index / self.steps, self._masks(), {}

        def mix(alpha: Tree) -> Mixture:
            return self.architecture.mix(alpha, masks, progress)

        rate = self._learning_rate(index)
        if self.recurrent:
            train, valid = self._train_batch(index), self._valid_batch(index)
            rate *= length_factor(self.options, train)
            keys = {self._weight_split: train.key, self._alpha_split: valid.key}
            hidden = {keys[split]: state for split, state in self.hidden.items()}
        return ArchitectureProblem(self.task, self.network, self.machine, self.options, mix, rate, hidden)

    def _segment(self, index: int) -> Segment:
        return Segment([self._train_batch(index)], {1: self._valid_batch(index)})

    def _learning_rate(self, index: int) -> float:
        return learning_rate(self.options, self.task, index, self.steps)

    def _train_batch(self, index: int) -> Batch:
        return self.task.batch(self._weight_split, index)

    def _valid_batch(self, index: int) -> Batch:
        """ "fresh": the first batch of a new shuffle at each step, so the half is not swept in order.

        The stream of a text starts again with each pass over `weight_split`, as the hidden states do.
        """
        length = self.task.batches(self._alpha_split)
        if self.options.valid_batches == "fresh":
            index *= length
        elif self.recurrent:
            done, place = divmod(index, self.task.batches(self._weight_split))
            index = done * length * math.ceil(self.task.batches(self._weight_split) / length) + place
        return self.task.batch(self._alpha_split, index)


def _fused(context: Context) -> bool:
    """Whether the supernet may use kernels that are differentiated once."""
    return context.machine.options.fused and not _required(context.hypergradient).differentiates_twice


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
            f"method darts: {type(network).__name__} is no search space; choose network=darts_supernet "
            "(images) or network=darts_recurrent_supernet (texts)"
        )
    return network
