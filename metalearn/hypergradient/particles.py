"""Inner runs under perturbed meta-parameters, by value, and carries in plain containers."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import Carry, Segment, check_segment
from metalearn.problem import Inner, Problem, visit
from metalearn.task import Metrics
from metalearn.tree import Tree, add, detach, norm, scale, zeros_like


class Pair(NamedTuple):
    """Two inner runs under opposite perturbations, and the sum of those that the first has seen."""

    positive: Inner
    negative: Inner
    perturbation: Tree  # xi of Vicol et al. 2021; the negative run has seen -xi


class Particles(NamedTuple):
    """The inner runs that persistent evolution strategies keep between segments."""

    pairs: tuple[Pair, ...]


class Swarm(NamedTuple):
    """The same with all runs in one pass: those under positive perturbations, then their opposites."""

    inner: Inner  # [particles problems ...]
    perturbation: Tree  # [pairs lanes ...], as that of `Pair`


def play(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> tuple[Float[Tensor, ""], Inner]:
    """The sum of outer losses over a segment (0 without any) and the run's end; no graph lasts over a step.

    Autograd serves the inner gradient, and what the problem itself differentiates. Where one pass serves
    both levels (`problem.shared_loss` and outer[t] is inner[t]) the loss is computed once.
    """
    if segment.outer:
        check_segment(segment)
    meta, inner, losses = detach(meta), inner.detach(), []
    for step, batch in enumerate(segment.inner):
        score, grads = visit(problem, meta, inner.params, batch, segment.outer.get(step))
        if score is not None:
            losses.append(score)
        inner = problem.update(meta, inner, grads).detach()
    last = segment.outer.get(len(segment.inner))
    if last is not None:
        losses.append(problem.outer_loss(meta, inner.params, last).detach())
    return (torch.stack(losses).sum() if losses else _zero(meta)), inner


def perturbation(meta: Tree, deviation: float, rng: torch.Generator) -> Tree:
    """Independent N(0, deviation^2) for every number of `meta`, drawn on the CPU in the leaf's own type."""
    return {
        key: deviation * torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype).to(leaf.device)
        for key, leaf in meta.items()
    }


class Contrast(NamedTuple):
    """What one pair of runs says of the gradient: half the difference of its losses, along a direction."""

    direction: Tree
    positive: Float[Tensor, ""]
    negative: Float[Tensor, ""]

    def gradient(self, deviation: float) -> Tree:
        """direction (L+ - L-) / (2 deviation^2)."""
        return scale(self.direction, (self.positive - self.negative) / (2 * deviation**2))


def mean_gradient(grads: Iterable[Tree], meta: Tree) -> tuple[Tree, Metrics]:
    """The mean over pairs; from two pairs on, its standard error as a share of its norm.

    `hypergradient/spread` is the root of the summed variances of the mean's entries over the mean's norm: 0
    where every pair says zero, near 1 where the mean is little but noise, which its norm then measures.
    """
    total, squares = zeros_like(meta), []
    for grad in grads:
        total = add(total, grad)
        squares.append(norm(grad) ** 2)
    count = len(squares)
    mean = scale(total, 1 / count)
    if count == 1:
        return mean, {}
    length = norm(mean)
    variance = (torch.stack(squares).mean() - length**2).clamp_min(0.0) / (count - 1)
    return mean, {"hypergradient/spread": variance.sqrt() / length.clamp_min(torch.finfo(length.dtype).tiny)}


def to_state(carry: Carry) -> dict[str, Any]:
    """A carry, `Inner`, `Particles` or `Swarm`, in plain containers of tensors, for a checkpoint."""
    if isinstance(carry, Particles):
        return {"pairs": [_pair_state(pair) for pair in carry.pairs]}
    if isinstance(carry, Swarm):
        return {"swarm": to_state(carry.inner), "perturbation": carry.perturbation}
    return {"params": carry.params, "slots": carry.slots}


def from_state(state: dict[str, Any], put: Callable[[Tensor], Tensor]) -> Carry:
    """The carry that `to_state` gave, its tensors through `put`, e.g. to a device."""

    def tree(leaves: Tree) -> Tree:
        return {key: put(leaf) for key, leaf in leaves.items()}

    def inner(place: dict[str, Tree]) -> Inner:
        return Inner(tree(place["params"]), tree(place["slots"]))

    if "swarm" in state:
        return Swarm(inner(state["swarm"]), tree(state["perturbation"]))
    if "pairs" not in state:
        return inner(state)
    return Particles(
        tuple(
            Pair(inner(pair["positive"]), inner(pair["negative"]), tree(pair["perturbation"]))
            for pair in state["pairs"]
        )
    )


def _pair_state(pair: Pair) -> dict[str, Any]:
    return {
        "positive": to_state(pair.positive),
        "negative": to_state(pair.negative),
        "perturbation": pair.perturbation,
    }


def _zero(meta: Tree) -> Tensor:
    return next(iter(meta.values())).new_zeros(())
