"""Meta-training: an update rule learns by hypergradients of its own runs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from metalearn.hypergradient.base import Carry, HyperGradient, Segment
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.particles import from_state, play, to_state
from metalearn.hypergradient.pes import Pes
from metalearn.learned_optimizers.config import MetaTrainingOptions
from metalearn.learned_optimizers.optimizees import Single
from metalearn.learned_optimizers.rollout import rollout, summary, write_trajectories
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.learned_optimizers.run import Run
from metalearn.method import Bilevel, Context, Situation
from metalearn.problem import Inner
from metalearn.registry import UserError, build, names
from metalearn.rng import generator
from metalearn.task import Metrics, Split
from metalearn.tree import Tree, add, clip_norm, count, detach, require_grad, scale, zeros_like

SERIES = "learned optimizer"
FORMAT = 1  # of optimizer.json
NO_STEP = "which takes no inner step, so that the rule would have no gradient"
AT_END = "which is about the end of a converged run, whereas every point of a run is scored"
UNFIT = [  # estimator, its name, what is wrong with it here
    (FirstOrder, "first_order", NO_STEP),
    (Neumann, "neumann", AT_END),
    (ConjugateGradient, "conjugate_gradient", AT_END),
]


class MetaTraining(Bilevel):
    """Adam on a rule's meta-parameters; one step is one unroll, `horizon / unroll` of them are one run.

    Parameters and slots are carried over between the unrolls of a run, by value; `pes` carries its particles
    over in their place. It and `evolution` see the gradients' own dependence on the rule too, whatever
    `second_derivatives` says: they compare values. Group g's r-th run has the number r * groups + g, and
    `problems` problems of its optimizee side by side.
    """

    def __init__(self, options: MetaTrainingOptions, context: Context) -> None:
        if options.horizon % options.unroll:
            raise UserError(
                f"method.unroll: got {options.unroll}, must divide method.horizon, {options.horizon}"
            )
        self.estimator = _checked(context.hypergradient, options)
        self.options, self.seed, self.machine = options, context.seed, context.machine
        self.task = context.task
        self.family = Single(options, context)
        self.rule = _rule(context)
        fresh = self.rule.init(generator(context.seed, "learned_optimizer"))
        self.meta = require_grad({key: context.machine.put(leaf) for key, leaf in fresh.items()})
        self.optimizer = torch.optim.Adam(self.meta.values(), options.learning_rate)
        self.carries: list[Carry | None] = [None] * options.groups
        self.curves: dict[str, Tensor] = {}  # of the last evaluations, for `artifacts`

    def step(self, index: int) -> Metrics:
        """One unroll of every group's run `index // (horizon / unroll)`, and one step of Adam."""
        told: list[Metrics] = []
        total = zeros_like(self.meta)
        for group in range(self.options.groups):
            grad, metrics = self._estimate(index, group)
            total = add(total, grad, 1 / self.options.groups)
            told.append(metrics)
        self._descend(total)
        return {key: torch.stack([metrics[key] for metrics in told]).mean() for key in told[0]}

    def situations(self, index: int) -> list[Situation]:
        """One unroll of each group, from where its run stands or from its start.

        Particles stand nowhere themselves, nor does their mean: for them it is where the run would have
        come to under the present meta-parameters, which is run again from its start (< `horizon` steps).
        """
        return [self._situation(index, group) for group in range(self.options.groups)]

    def run(self, index: int, group: int) -> tuple[Run, int]:
        """The run that a group is in at a step, and how many unrolls it has behind it."""
        number, part = divmod(index, self.options.horizon // self.options.unroll)
        number = number * self.options.groups + group
        optimizee, problems = self.family.draw("train", number), self.options.problems
        numbers = range(number * problems, (number + 1) * problems)
        return Run(self.rule, optimizee, "train", numbers, self.options.second_derivatives), part

    def segment(self, run: Run, part: int) -> Segment:
        """The batches of one unroll; the point after its last update is also where the next one starts."""
        unroll, last = self.options.unroll, int(self.options.count_last)
        batches = run.batches(part * unroll, unroll + last)
        return Segment(batches[:unroll], dict(enumerate(batches)))

    def evaluate(self, split: Split) -> Metrics:
        """The rule as it stands on the fixed fresh problems of a split."""
        with self.machine.autocast():
            curve = rollout(self.rule, detach(self.meta), self.family, split)
        self.curves[split] = curve
        return summary(split, curve)

    def state_dict(self) -> dict[str, Any]:
        """Meta-parameters, Adam's moments, and where the present runs stand."""
        carries = [None if carry is None else to_state(carry) for carry in self.carries]
        return {"meta": detach(self.meta), "optimizer": self.optimizer.state_dict(), "carries": carries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        with torch.no_grad():
            for key, leaf in self.meta.items():
                leaf.copy_(state["meta"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        put = self.machine.put
        self.carries = [None if carry is None else from_state(carry, put) for carry in state["carries"]]
        self.curves = {}

    def artifacts(self, folder: Path) -> None:
        """`optimizer.safetensors`, `optimizer.json` with its rule, `summary.json`, the last curves."""
        save_file(
            {key: leaf.cpu() for key, leaf in detach(self.meta).items()}, folder / "optimizer.safetensors"
        )
        record = {"format": FORMAT, "rule": dataclasses.asdict(self.rule.options)}
        record |= {"method": dataclasses.asdict(self.options), "task": self.task.spec.name}
        (folder / "optimizer.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / "summary.json").write_text(json.dumps({"parameters": count(self.meta)}) + "\n")
        split = "test" if "test" in self.curves else "valid"
        if split not in self.curves:
            self.evaluate("valid")
        write_trajectories(folder, {SERIES: self.curves[split]})

    def _estimate(self, index: int, group: int) -> tuple[Tree, Metrics]:
        """A group's meta-gradient, of its problems' mean loss, and what came with it."""
        run, part = self.run(index, group)
        carry = self.carries[group]
        if part == 0 or carry is None:
            carry = self.estimator.init(run, self.meta, generator(self.seed, "start", index, group))
        segment = self.segment(run, part)
        rng = generator(self.seed, "estimate", index, *([group] if group else []))
        with self.machine.autocast():
            estimate = self.estimator.estimate(run, self.meta, carry, segment, rng)
        self.carries[group] = estimate.carry
        loss = estimate.loss / (len(segment.outer) * run.weight)
        return scale(estimate.grad, 1 / run.weight), {"train/meta_loss": loss, **estimate.metrics}

    def _descend(self, grads: Tree) -> None:
        if self.options.clip is not None:
            grads = clip_norm(grads, self.options.clip)
        for key, leaf in self.meta.items():
            leaf.grad = grads[key]
        self.optimizer.step()

    def _situation(self, index: int, group: int) -> Situation:
        run, part = self.run(index, group)
        inner, segment = self.carries[group], self.segment(run, part)
        if part == 0 or not isinstance(inner, Inner):
            inner = self._replayed(run, 0 if inner is None else part)
        return Situation(run, self.meta, inner.detach(), segment)

    def _replayed(self, run: Run, parts: int) -> Inner:
        """Where a run stands after its first `parts` unrolls under the meta-parameters as they are."""
        inner = run.init(self.meta, generator(self.seed))
        for part in range(parts):
            with self.machine.autocast():
                _, inner = play(run, self.meta, inner, Segment(self.segment(run, part).inner, {}))
        return inner


def _rule(context: Context) -> UpdateRule:
    """The configured rule. Raises UserError."""
    if context.rule is None:
        allowed = ", ".join(names("rule"))
        raise UserError(f"learned_optimizer: got rule=none; choose rule=NAME, of: {allowed}")
    return build("rule", context.rule, machine=context.machine)


def _checked(estimator: HyperGradient | None, options: MetaTrainingOptions) -> HyperGradient:
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
