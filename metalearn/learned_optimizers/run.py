"""Problems under way under an update rule, as the hypergradient engine sees them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.problem import Inner, Problem
from metalearn.task import Batch, Split
from metalearn.tree import Tree


class Run(Problem):
    """Some numbers of an optimizee side by side: meta-parameters are the rule's, slots its memory."""

    shared_loss = True

    def __init__(
        self,
        rule: UpdateRule,
        optimizee: Optimizee,
        split: Split,
        numbers: Sequence[int],
        second_derivatives: bool,
    ) -> None:
        self.rule, self.optimizee, self.split, self.numbers = rule, optimizee, split, numbers
        self.second_derivatives = second_derivatives
        self.weight = optimizee.share * len(numbers) * optimizee.functions  # of the mean loss in the total

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        """The problems' starts, which their numbers name, and the rule's memory before its first step."""
        theta = self.optimizee.start(self.split, self.numbers)
        return Inner({"theta": theta}, self.rule.slots(theta, self.optimizee.layout))

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:  # noqa: ARG002
        """The sum of the problems' losses: each sees its own gradient."""
        return self.optimizee.total(params["theta"], batch)

    def value_and_gradient(self, params: Tree, batch: Batch) -> tuple[Float[Tensor, ""], Tree]:
        """`inner_loss` and its gradient, of all problems in one pass."""
        total, grads = self.optimizee.total_and_gradient(params["theta"], batch)
        return total, {"theta": grads}

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of the rule."""
        return self.rule.update(meta, inner, grads, self.optimizee.layout)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The same loss: every point of a run counts (eq. 3 with all weights 1)."""
        return self.inner_loss(meta, params, batch)

    def batches(self, first: int, count: int) -> list[Batch]:
        """What its points are scored on, `count` of them from the one after `first` steps."""
        return self.optimizee.batches(self.split, self.numbers, first, count)
