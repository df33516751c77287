"""An inner run outside any graph whose updates are put into one graph afterwards, all at once."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import Segment
from metalearn.problem import Batched, Inner, Problem
from metalearn.tree import Tree, detach


@runtime_checkable
class Replayed(Batched, Protocol):
    """A problem whose updates from known gradients have a joint way back, which keeps less or is faster."""

    def replays(self, meta: Tree, inner: Inner) -> bool:
        """Whether it has one for these."""
        ...

    def replay(self, meta: Tree, start: Inner, grads: Tree, after: Inner) -> Inner:
        """`after` in a graph on `meta` and `start`.

        `grads` has the gradient of every step in front, constants; `after` is where they led: the parameters
        after every step, the slots after the last.
        """
        ...


def run_replayed(
    problem: Problem, meta: Tree, inner: Inner, segment: Segment
) -> tuple[list[Tensor], Inner] | None:
    """As `inner_run.run`, or None where it does not apply.

    Without second derivatives nothing but updates is propagated back through, and the losses' gradients are
    those that the run has met (L2L fig. 2).
    """
    if problem.second_derivatives or not isinstance(problem, Replayed) or not segment.inner:
        return None
    shared = all(segment.outer.get(step, batch) is batch for step, batch in enumerate(segment.inner))
    if not shared or not problem.replays(meta, inner):
        return None
    fixed, here = detach(meta), inner.detach()
    scores: dict[int, tuple[Tensor, Tree]] = {}
    grads, points = [], []
    for step, batch in enumerate(segment.inner):
        score, slopes, grad = problem.score_and_gradients(here.params, batch)
        if step in segment.outer:
            scores[step] = score, slopes
        here = problem.update(fixed, here, grad)
        grads.append(grad)
        points.append(here.params)
    last = segment.outer.get(len(segment.inner))
    if last is not None:
        scores[len(segment.inner)] = problem.score_and_gradients(here.params, last)[:2]
    after = problem.replay(meta, inner, _stacked(grads), Inner(_stacked(points), here.slots))
    places = [inner.params, *_unstacked(after.params)]
    losses = [_followed(score, slopes, places[step]) for step, (score, slopes) in scores.items()]
    return losses, Inner(places[-1], after.slots)


def _followed(loss: Float[Tensor, ""], slopes: Tree, params: Tree) -> Tensor:
    """`loss`, with `slopes` as its gradient by `params`."""
    return sum(((slopes[key] * (leaf - leaf.detach())).sum() for key, leaf in params.items()), loss)


def _stacked(trees: list[Tree]) -> Tree:
    return {key: torch.stack([tree[key] for tree in trees]) for key in trees[0]}


def _unstacked(tree: Tree) -> list[Tree]:
    return [
        dict(zip(tree, leaves, strict=True))
        for leaves in zip(*(leaf.unbind(0) for leaf in tree.values()), strict=True)
    ]
