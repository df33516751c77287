"""Inner runs under many perturbed meta-parameters in one pass, for problems that have one."""

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import Segment, check_segment
from metalearn.hypergradient.particles import Swarm
from metalearn.problem import Inner, Problem, SideBySide
from metalearn.tree import Tree, tree_map


def lanes_of(problem: Problem) -> int:
    """How many perturbations each particle has side by side; 0: particles run one by one."""
    return problem.lanes if isinstance(problem, SideBySide) else 0


def gathered(inner: Inner, meta: Tree, pairs: int, lanes: int) -> Swarm:
    """All particles at one place, none perturbed yet."""
    fresh = {key: leaf.new_zeros(pairs, lanes, *leaf.shape) for key, leaf in meta.items()}
    return Swarm(repeated(inner, 2 * pairs), fresh)


def repeated(inner: Inner, count: int) -> Inner:
    """One place `count` times, without copies."""
    return Inner(*(tree_map(lambda leaf: leaf.detach().expand(count, *leaf.shape), tree) for tree in inner))


def perturbations(meta: Tree, pairs: int, lanes: int, deviation: float, rng: torch.Generator) -> Tree:
    """`particles.perturbation` for every pair and lane, [pairs lanes ...]; with one lane the same numbers."""
    drawn: dict[str, list[Tensor]] = {key: [] for key in meta}
    for _ in range(pairs):
        for key, leaf in meta.items():
            noise = torch.randn((lanes, *leaf.shape), generator=rng, dtype=leaf.dtype)
            drawn[key].append(deviation * noise)
    return {key: torch.stack(each).to(meta[key].device) for key, each in drawn.items()}


def opposite(meta: Tree, noise: Tree) -> Tree:
    """meta + noise of every pair, then meta - noise."""
    return {key: torch.cat([leaf + noise[key], leaf - noise[key]]) for key, leaf in meta.items()}


def play(
    problem: Problem, metas: Tree, inner: Inner, segment: Segment
) -> tuple[Float[Tensor, "particles lanes"], Inner]:
    """The sums of outer losses over a segment (0 without any) and the runs' ends."""
    assert isinstance(problem, SideBySide)
    if segment.outer:
        check_segment(segment)
    shape = next(iter(metas.values())).shape[:2]
    total = next(iter(metas.values())).new_zeros(shape)
    for step, batch in enumerate(segment.inner):
        scored = segment.outer.get(step)
        scores, grads = problem.scores_and_gradients(inner.params, batch)
        if scored is not None:
            total = total + (
                scores if scored is batch else problem.scores_and_gradients(inner.params, scored)[0]
            )
        inner = problem.updates(metas, inner, grads)
    last = segment.outer.get(len(segment.inner))
    if last is not None:
        total = total + problem.scores_and_gradients(inner.params, last)[0]
    return total, inner


def gradients(direction: Tree, totals: Float[Tensor, "particles lanes"], deviation: float) -> list[Tree]:
    """Each pair's direction (L+ - L-) / (2 deviation^2), lanes summed."""
    positive, negative = totals.chunk(2)
    weights = (positive - negative) / (2 * deviation**2)
    summed = {key: torch.einsum("pl,pl...->p...", weights, leaf) for key, leaf in direction.items()}
    return [{key: leaf[pair] for key, leaf in summed.items()} for pair in range(len(positive))]
