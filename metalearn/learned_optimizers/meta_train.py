"""Meta-training: an update rule learns by hypergradients of its own runs."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.hypergradient.base import Carry, Estimate, Segment
from metalearn.hypergradient.particles import from_state, play, to_state
from metalearn.learned_optimizers import imitation
from metalearn.learned_optimizers.augmentation import loss_scale, rescaled
from metalearn.learned_optimizers.config import MetaTrainingOptions
from metalearn.learned_optimizers.estimators import checked
from metalearn.learned_optimizers.optimizees import family
from metalearn.learned_optimizers.rollout import MEASURES, rollout, summary, write_trajectories
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.learned_optimizers.run import Run
from metalearn.learned_optimizers.schedule import Schedule
from metalearn.learned_optimizers.stored import save
from metalearn.learned_optimizers.updates import write_updates
from metalearn.method import Bilevel, Context, Situation
from metalearn.problem import Inner
from metalearn.processes import Processes
from metalearn.registry import UserError, build, names
from metalearn.rng import generator
from metalearn.task import Metrics, Split
from metalearn.tree import Tree, add, clip_norm, count, detach, require_grad, scale, zeros_like

SERIES = "learned optimizer"


class MetaTraining(Bilevel):
    """Adam on a rule's meta-parameters; one step is one unroll, some of which are one run (`Schedule`).

    Parameters and slots are carried over between the unrolls of a run, by value; `pes` carries its particles
    over in their place. It and `evolution` see the gradients' own dependence on the rule too, whatever
    `second_derivatives` says: they compare values. Group g's r-th run has the number r * groups + g, and
    `problems` problems of its optimizee side by side. Groups are shared by the processes, every one of which
    knows where the runs of all stand. While the rule imitates Adam it has runs of their own.
    """

    shares_steps = True
    uses = ("rule", "mixture")
    measures = MEASURES

    def __init__(self, options: MetaTrainingOptions, context: Context) -> None:
        self.schedule = Schedule(options, context.seed)
        self.estimator = checked(context.hypergradient, options)
        self.options, self.seed, self.machine = options, context.seed, context.machine
        self.own = _share(options.groups, context.machine.processes)  # the groups of this process
        self.family = family(options, context)
        self.learns_on = self.family.spec
        self.rule = _rule(context)
        fresh = self.rule.init(generator(context.seed, "learned_optimizer"))
        self.meta = require_grad({key: context.machine.put(leaf) for key, leaf in fresh.items()})
        self.optimizer = torch.optim.Adam(self.meta.values(), options.learning_rate)
        self.carries: list[Carry | None] = [None] * options.groups
        self._runs: dict[int, tuple[int, Run]] = {}  # the last of each group, by number
        self.curves: dict[str, Tensor] = {}  # of the last evaluations, for `artifacts`

    def step(self, index: int) -> Metrics:
        """One unroll of every group's present run, and one step of Adam."""
        found = {group: self._estimate(index, group) for group in self.own}
        told, total = [estimate.metrics for estimate in found.values()], zeros_like(self.meta)
        for estimate in found.values():
            total = add(total, estimate.grad, 1 / len(found))
        means = {key: torch.stack([metrics[key] for metrics in told]).mean() for key in told[0]}
        means = self.machine.processes.average({f"grad/{key}": leaf for key, leaf in total.items()} | means)
        self.carries = self._together({group: estimate.carry for group, estimate in found.items()})
        self._descend({key: means.pop(f"grad/{key}") for key in self.meta})
        return means

    def situations(self, index: int) -> list[Situation]:
        """One unroll of each group, from where its run stands or from its start.

        Particles stand nowhere themselves, nor does their mean: for them it is where the run would have
        come to under the present meta-parameters, which is run again from its start (< `horizon` steps).
        Raises UserError for a step that imitates.
        """
        if index < self.options.imitation.steps:
            raise UserError(
                f"step {index} imitates Adam and has no hypergradient; begin after "
                f"method.imitation.steps={self.options.imitation.steps}, or set it to 0"
            )
        return [self._situation(index, group) for group in range(self.options.groups)]

    def run(self, index: int, group: int) -> tuple[Run, int]:
        """The run that a group is in at a step, and how many unrolls it has behind it."""
        imitated = self.options.imitation.steps
        place = self.schedule.place(index - imitated if index >= imitated else index, group)
        number = place.run * self.options.groups + group
        if group not in self._runs or self._runs[group][0] != number:
            self._runs[group] = number, self._begun(number)
        return self._runs[group][1], place.part

    def segment(self, run: Run, part: int) -> Segment:
        """The batches of one unroll; the point after its last update is also where the next one starts."""
        unroll, last = self.options.unroll, int(self.options.count_last)
        batches = run.batches(part * unroll, unroll + last)
        scored = dict(enumerate(batches))
        if self.options.objective == "last":
            scored = {unroll: batches[-1]}
        return Segment(batches[:unroll], scored)

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
        """The rule (`save`), `summary.json`, the last curves, and its updates if they are asked for."""
        self.save(folder)
        (folder / "summary.json").write_text(json.dumps({"parameters": count(self.meta)}) + "\n")
        split = "test" if "test" in self.curves else "valid"
        if split not in self.curves:
            self.evaluate("valid")
        write_trajectories(folder, {SERIES: self.curves[split]})
        if self.options.updates.steps:
            optimizee = self.family.evaluation("valid")[0][0]
            write_updates(folder, self.rule, detach(self.meta), optimizee, self.options.updates)

    def save(self, folder: Path, **origin: str | None) -> None:
        """The rule as it stands, for `stored.load`; `origin` is written beside it."""
        steps = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        record = {"method": dataclasses.asdict(self.options), "task": self.family.spec.name}
        save(folder, self.rule, self.meta, {**record, "seed": self.seed, "steps": steps, **origin})

    def _begun(self, number: int) -> Run:
        options, drawn = self.options, self.family.draw("train", number)
        numbers = range(number * options.problems, (number + 1) * options.problems)
        return Run(
            self.rule,
            rescaled(drawn, options.augmentation, "train", numbers),
            "train",
            numbers,
            options.second_derivatives,
            options.score,
            options.particles,
            loss_scale(drawn, options.augmentation, "train", numbers),
        )

    def _estimate(self, index: int, group: int) -> Estimate:
        """A group's meta-gradient, of its problems' mean score, with what is told of it."""
        run, part = self.run(index, group)
        carry = self.carries[group] if part else None
        if index < self.options.imitation.steps:
            return self._imitated(run, part, carry)
        if carry is None:
            carry = self.estimator.init(run, self.meta, generator(self.seed, "start", index, group))
        segment = self.segment(run, part)
        rng = generator(self.seed, "estimate", index, *([group] if group else []))
        with self.machine.autocast():
            estimate = self.estimator.estimate(run, self.meta, carry, segment, rng)
        loss = estimate.loss / (len(segment.outer) * run.weight)
        told = {"train/meta_loss": loss, **estimate.metrics}
        return Estimate(scale(estimate.grad, 1 / run.weight), loss, estimate.carry, told)

    def _imitated(self, run: Run, part: int, carry: Carry | None) -> Estimate:
        """The gradient that brings a rule's updates nearer to Adam's."""
        options, unroll = self.options.imitation, self.options.unroll
        batches = run.batches(part * unroll, unroll)
        start = imitation.start(run, self.meta) if carry is None else carry
        with self.machine.autocast():
            return imitation.imitate(run, self.meta, start, batches, options)

    def _together(self, carries: dict[int, Carry]) -> list[Carry | None]:
        """Where the runs of all groups stand, from where each process's own do."""
        processes, put = self.machine.processes, self.machine.put
        if processes.size == 1:
            return list(carries.values())
        states = {str(group): to_state(carry) for group, carry in carries.items()}
        found = {key: state for part in processes.gather(states) for key, state in part.items()}
        return [from_state(found[str(group)], put) for group in range(self.options.groups)]

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


def _share(groups: int, processes: Processes) -> Sequence[int]:
    """Raises UserError if the groups do not divide evenly."""
    if groups % processes.size:
        raise UserError(
            f"method.groups: got {groups}, must be a multiple of the processes, {processes.size}; set "
            f"method.groups={processes.size}, or start as many as divide it (torchrun --nproc-per-node)"
        )
    return processes.share(range(groups))


def _rule(context: Context) -> UpdateRule:
    """The configured rule. Raises UserError."""
    if context.rule is None:
        allowed = ", ".join(names("rule"))
        raise UserError(f"learned_optimizer: got rule=none; choose rule=NAME, of: {allowed}")
    return build("rule", context.rule, machine=context.machine)
