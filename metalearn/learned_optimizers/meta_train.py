"""Meta-training of the LSTM optimizer by hypergradients of its own runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from metalearn.hypergradient.base import Carry, HyperGradient, Segment
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.particles import from_state, play, to_state
from metalearn.hypergradient.pes import Pes
from metalearn.learned_optimizers.config import LearnedOptimizerOptions
from metalearn.learned_optimizers.lstm import LstmRule
from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.learned_optimizers.rollout import rollout, summary, write_trajectories
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.method import Bilevel, Context, Situation
from metalearn.problem import Inner, Problem
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split
from metalearn.tree import Tree, clip_norm, count, detach, require_grad, scale

SERIES = "LSTM optimizer"
NO_STEP = "which takes no inner step, so that the rule would have no gradient"
AT_END = "which is about the end of a converged run, whereas every point of a run is scored"
UNFIT = [  # estimator, its name, what is wrong with it here
    (FirstOrder, "first_order", NO_STEP),
    (Neumann, "neumann", AT_END),
    (ConjugateGradient, "conjugate_gradient", AT_END),
]


class Run(Problem):
    """An optimizee's run under an update rule: meta-parameters are the rule's, slots its memory."""

    shared_loss = True

    def __init__(self, rule: UpdateRule, optimizee: Optimizee, second_derivatives: bool) -> None:
        self.rule, self.optimizee = rule, optimizee
        self.second_derivatives = second_derivatives

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        """Fresh parameters, and the rule's memory before its first step."""
        theta = self.optimizee.start(rng)
        return Inner({"theta": theta}, self.rule.slots(theta))

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:  # noqa: ARG002
        """The optimizee's loss."""
        return self.optimizee.loss(params["theta"], batch)

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of the rule."""
        return self.rule.update(meta, inner, grads)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The same loss: every point of a run counts (eq. 3 with all weights 1)."""
        return self.inner_loss(meta, params, batch)


class LearnedOptimizer(Bilevel):
    """Adam on the LSTM's weights; one step is one unroll, `horizon / unroll` of them are one problem's run.

    Parameters and hidden states are carried over between the unrolls of a run, by value; `pes` carries its
    particles over in their place. It and `evolution` see the gradients' own dependence on the rule too,
    whatever `second_derivatives` says: they compare values.
    """

    def __init__(self, options: LearnedOptimizerOptions, context: Context) -> None:
        if options.horizon % options.unroll:
            raise UserError(
                f"method.unroll: got {options.unroll}, must divide method.horizon, {options.horizon}"
            )
        self.estimator = _checked(context.hypergradient, options)
        self.options, self.seed, self.machine = options, context.seed, context.machine
        self.optimizee = Optimizee(options, context)
        self.rule = LstmRule(options, context.machine)
        self.problem = Run(self.rule, self.optimizee, options.second_derivatives)
        fresh = self.rule.network.init(generator(context.seed, "learned_optimizer"))
        self.meta = require_grad({key: context.machine.put(leaf) for key, leaf in fresh.items()})
        self.optimizer = torch.optim.Adam(self.meta.values(), options.learning_rate)
        self.carry: Carry | None = None
        self.curves: dict[str, Tensor] = {}  # of the last evaluations, for `artifacts`

    def step(self, index: int) -> Metrics:
        """One unroll of run `index // (horizon / unroll)` and one step of Adam on the LSTM."""
        run, part = divmod(index, self.options.horizon // self.options.unroll)
        if part == 0 or self.carry is None:
            self.carry = self.estimator.init(self.problem, self.meta, self.optimizee.stream("train", run))
        segment, rng = self.segment(run, part), generator(self.seed, "estimate", index)
        with self.machine.autocast():
            estimate = self.estimator.estimate(self.problem, self.meta, self.carry, segment, rng)
        self.carry = estimate.carry
        self._descend(scale(estimate.grad, 1 / self.optimizee.functions))
        loss = estimate.loss / (len(segment.outer) * self.optimizee.functions)
        return {"train/meta_loss": loss, **estimate.metrics}

    def situations(self, index: int) -> list[Situation]:
        """One unroll, from where the present run stands or from a fresh problem's start.

        Particles stand nowhere themselves, nor does their mean: for them it is where the run would have
        come to under the present meta-parameters, which is run again from its start (< `horizon` steps).
        """
        run, part = divmod(index, self.options.horizon // self.options.unroll)
        inner, segment = self.carry, self.segment(run, part)
        if part == 0 or not isinstance(inner, Inner):
            inner = self._replayed(run, 0 if inner is None else part)
        return [Situation(self.problem, self.meta, inner.detach(), segment)]

    def segment(self, run: int, part: int) -> Segment:
        """The batches of one unroll; the point after its last update is also where the next one starts."""
        unroll, last = self.options.unroll, int(self.options.count_last)
        batches = self.optimizee.batches("train", run, part * unroll, unroll + last)
        return Segment(batches[:unroll], dict(enumerate(batches)))

    def evaluate(self, split: Split) -> Metrics:
        """The LSTM as it stands on the fixed fresh problems of a split."""
        with self.machine.autocast():
            curve = rollout(self.rule, detach(self.meta), self.optimizee, split)
        self.curves[split] = curve
        return summary(split, curve)

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments, and where the present run stands."""
        carry = None if self.carry is None else to_state(self.carry)
        return {"meta": detach(self.meta), "optimizer": self.optimizer.state_dict(), "carry": carry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        with torch.no_grad():
            for key, leaf in self.meta.items():
                leaf.copy_(state["meta"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        carry = state["carry"]
        self.carry = None if carry is None else from_state(carry, self.machine.put)
        self.curves = {}

    def artifacts(self, folder: Path) -> None:
        """`optimizer.safetensors`, `optimizer.json` with its options, `summary.json`, the last curves."""
        save_file(
            {key: leaf.cpu() for key, leaf in detach(self.meta).items()}, folder / "optimizer.safetensors"
        )
        record = dataclasses.asdict(self.options) | {"task": self.optimizee.task.spec.name}
        (folder / "optimizer.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / "summary.json").write_text(json.dumps({"parameters": count(self.meta)}) + "\n")
        split = "test" if "test" in self.curves else "valid"
        if split not in self.curves:
            self.evaluate("valid")
        write_trajectories(folder, {SERIES: self.curves[split]})

    def _descend(self, grads: Tree) -> None:
        if self.options.clip is not None:
            grads = clip_norm(grads, self.options.clip)
        for key, leaf in self.meta.items():
            leaf.grad = grads[key]
        self.optimizer.step()

    def _replayed(self, run: int, parts: int) -> Inner:
        """Where a run stands after its first `parts` unrolls under the meta-parameters as they are."""
        inner = self.problem.init(self.meta, self.optimizee.stream("train", run))
        for part in range(parts):
            batches = self.segment(run, part).inner
            with self.machine.autocast():
                _, inner = play(self.problem, self.meta, inner, Segment(batches, {}))
        return inner


def _checked(estimator: HyperGradient | None, options: LearnedOptimizerOptions) -> HyperGradient:
    """`estimator`, if it can teach a rule by unrolls that are scored at every point. Raises UserError."""
    if estimator is None:
        raise UserError("learned_optimizer: got hypergradient none; choose hypergradient=unrolled")
    for unfit, name, reason in UNFIT:
        if isinstance(estimator, unfit):
            raise UserError(
                f"learned_optimizer: got hypergradient {name}, {reason}; choose hypergradient=unrolled, "
                "truncated, forward, evolution or pes"
            )
    if isinstance(estimator, FiniteDifference) and options.unroll != 1:
        raise UserError(
            "learned_optimizer: got hypergradient finite_difference, which takes exactly one inner step, and "
            f"method.unroll={options.unroll}; set method.unroll=1 method.count_last=true, or choose "
            "hypergradient=unrolled"
        )
    if options.unroll == 1 and not options.count_last and not isinstance(estimator, Pes):
        raise UserError(
            "learned_optimizer: got method.unroll=1 with count_last=false, which scores an unroll before the "
            "rule has moved anything, so that its gradient is zero; set method.count_last=true, raise "
            "method.unroll, or choose hypergradient=pes"
        )
    return estimator
