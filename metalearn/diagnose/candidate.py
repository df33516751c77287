"""One way to estimate the hypergradient of a step, ready to be asked."""

import copy
from collections.abc import Sequence

import torch

from metalearn import registry
from metalearn.diagnose.config import CandidateOptions
from metalearn.hypergradient.base import Estimate, HyperGradient, Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.machine import Machine
from metalearn.method import Situation
from metalearn.registry import UserError
from metalearn.task import Metrics
from metalearn.tree import Tree, add, scale


class Candidate:
    """An estimator, over how many windows of a segment, with which derivatives."""

    def __init__(
        self, estimator: HyperGradient, machine: Machine, windows: int = 1, second_derivatives: bool = True
    ) -> None:
        self.estimator, self.machine = estimator, machine
        self.windows, self.second_derivatives = windows, second_derivatives

    def estimate(self, group: Sequence[Situation], rng: torch.Generator) -> tuple[Tree, Metrics]:
        """The mean over the situations of one step, and the first one's metrics. Raises UserError."""
        total, metrics = self._one(group[0], rng)
        for situation in group[1:]:
            total = add(total, self._one(situation, rng)[0])
        return scale(total, 1 / len(group)), metrics

    def _one(self, situation: Situation, rng: torch.Generator) -> tuple[Tree, Metrics]:
        problem, carry = situation.problem, situation.inner
        if problem.second_derivatives and not self.second_derivatives:
            problem = copy.copy(problem)
            problem.second_derivatives = False
        grads: list[Tree] = []
        metrics: Metrics = {}
        for part in self._parts(situation.segment):
            with self.machine.autocast():
                found: Estimate = self.estimator.estimate(problem, situation.meta, carry, part, rng)
            carry, metrics = found.carry, found.metrics
            grads.append(found.grad)
        total = grads[0]
        for grad in grads[1:]:
            total = add(total, grad)
        return total, metrics

    def _parts(self, segment: Segment) -> list[Segment]:
        if self.windows == 1:
            return [segment]
        steps = len(segment.inner)
        parts = segment.split(-(-steps // self.windows))
        if len(parts) != self.windows or not all(part.outer for part in parts):
            raise UserError(
                f"windows: got {self.windows} for {steps} inner steps with losses at {list(segment.outer)}; "
                "each window needs a step and an outer loss"
            )
        return parts


def build(options: CandidateOptions, machine: Machine) -> Candidate:
    """A row of the table as a live estimator."""
    estimator = registry.build("hypergradient", options.estimator)
    return Candidate(estimator, machine, options.windows, options.second_derivatives)


def exact(group: Sequence[Situation], machine: Machine) -> Tree:
    """The hypergradient of a step by reverse mode through the whole segment, in the run's own precision."""
    reference = Candidate(Unrolled(UnrolledOptions("unrolled", recompute=False)), machine)
    return reference.estimate(group, torch.Generator())[0]
