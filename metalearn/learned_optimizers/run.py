"""Problems under way under an update rule, as the hypergradient engine sees them."""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.learned_optimizers.rules import ReplayedRule, UpdateRule
from metalearn.problem import Inner, Problem
from metalearn.task import Batch, Split
from metalearn.tree import Tree, scale, tree_map


class Run(Problem):
    """Some numbers of an optimizee side by side: meta-parameters are the rule's, slots its memory.

    `score`: what counts of a problem's loss: `loss`, `relative` (divided by the run's first) or `log`. The
    last two are ours, for problems of very different scale, and need losses above 0. `particles`:
    `MetaTrainingOptions.particles`. The rule sees gradients `loss_scale` times as large as they are.
    """

    def __init__(
        self,
        rule: UpdateRule,
        optimizee: Optimizee,
        split: Split,
        numbers: Sequence[int],
        second_derivatives: bool,
        score: str = "loss",
        particles: str = "one_by_one",
        loss_scale: Float[Tensor, "problems 1"] | None = None,
    ) -> None:
        self.rule, self.optimizee, self.numbers = rule, optimizee, numbers
        self.split: Split = split
        self.second_derivatives, self.score, self.shared_loss = second_derivatives, score, score == "loss"
        problems = len(numbers) * optimizee.functions
        self.weight = optimizee.share * problems  # of the mean loss in the total
        self.loss_scale = loss_scale
        self.lanes = {"one_by_one": 0, "shared": 1, "own": problems}[particles]

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

    def score_and_gradients(self, params: Tree, batch: Batch) -> tuple[Float[Tensor, ""], Tree, Tree]:
        """`outer_loss`, its gradient and that of `inner_loss`, of all problems in one pass."""
        if self.score == "loss":
            total, grads = self.value_and_gradient(params, batch)
            return total, grads, grads
        losses, grads = self.optimizee.losses_and_gradients(params["theta"], batch)
        scores, slopes = self._scored(losses)
        weighted = {"theta": slopes.unsqueeze(1) * grads}
        return self.optimizee.share * scores.sum(), weighted, {"theta": grads}

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of the rule."""
        return self.rule.update(meta, inner, self._seen(grads), self.optimizee.layout)

    def replays(self, meta: Tree, inner: Inner) -> bool:
        """Whether the rule has a joint way back through its steps."""
        return isinstance(self.rule, ReplayedRule) and self.rule.replays(meta, inner)

    def replay(self, meta: Tree, start: Inner, grads: Tree, after: Inner) -> Inner:
        """`after` in a graph."""
        assert isinstance(self.rule, ReplayedRule)
        return self.rule.replay(meta, start, self._seen(grads), after)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the problems' scores: every point of a run counts (eq. 3)."""
        if self.score == "loss":
            return self.inner_loss(meta, params, batch)
        scores, _ = self._scored(self.optimizee.losses(params["theta"], batch))
        return self.optimizee.share * scores.sum()

    def scores_and_gradients(
        self, params: Tree, batch: Batch
    ) -> tuple[Float[Tensor, "particles lanes"], Tree]:
        """Of all particles in one pass."""
        losses, grads = self.optimizee.of_particles(params["theta"], batch)
        scores = self.optimizee.share * self._scored(losses)[0]
        return scores if self.lanes > 1 else scores.sum(1, keepdim=True), {"theta": grads}

    def updates(self, metas: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of every particle's rule; with a rule for each problem, each is a particle of its own."""
        lanes, layout = self.lanes, self.optimizee.layout
        count = next(iter(metas.values())).shape[0]

        def apart(leaf: Tensor) -> Tensor:
            return leaf.reshape(count * lanes, -1, *leaf.shape[2:])

        def update(meta: Tree, theta: Tree, slots: Tree, grads: Tree) -> Inner:
            return self.rule.update(meta, Inner(theta, slots), grads, layout)

        rules = tree_map(lambda leaf: leaf.flatten(0, 1), metas)
        with torch.no_grad():
            after = vmap(update)(rules, *(tree_map(apart, tree) for tree in (*inner, self._seen(grads))))
        return Inner(
            *(tree_map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[2:]), tree) for tree in after)
        )

    def batches(self, first: int, count: int) -> list[Batch]:
        """What its points are scored on, `count` of them from the one after `first` steps."""
        return self.optimizee.batches(self.split, self.numbers, first, count)

    def _seen(self, grads: Tree) -> Tree:
        return grads if self.loss_scale is None else scale(grads, self.loss_scale)

    def _scored(self, losses: Float[Tensor, "... problems"]) -> tuple[Tensor, Tensor]:
        """What counts of losses, and its derivatives by them."""
        if self.score == "loss":
            return losses, torch.ones_like(losses)
        if self.score == "relative":
            return losses / self._first, (1 / self._first).expand_as(losses)
        above = losses.clamp_min(torch.finfo(losses.dtype).tiny)
        return above.log(), (losses >= above) / above

    @cached_property
    def _first(self) -> Float[Tensor, " problems"]:
        """The losses that the run begins with."""
        start = self.optimizee.start(self.split, self.numbers)
        return self.optimizee.losses_and_gradients(start, self.batches(0, 1)[0])[0]
