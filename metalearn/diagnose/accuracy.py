"""How near an estimator comes to the exact hypergradient."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metalearn.diagnose.candidate import Candidate
from metalearn.method import Situation
from metalearn.rng import generator
from metalearn.tree import Tree

Group = Sequence[Situation]  # of one step: its hypergradient is the mean of theirs


@dataclass(frozen=True)
class Accuracy:
    """Columns about values; norms are relative to the exact hypergradient's. Means over steps and draws."""

    cosine: float  # with the exact one; 0 where one of both is zero
    relative_norm: float
    bias: float  # norm of (mean over draws - exact)
    floor: float  # the standard error of that mean: a bias near it may be none
    deviation: float  # root of the variance of a draw, summed over meta-parameters
    draws: int  # 1 for an estimator that does not sample
    residual: float | None  # of the linear system, where an implicit estimator tells


def flat(tree: Tree) -> Tensor:
    """All numbers as one float64 vector."""
    return torch.cat([leaf.detach().reshape(-1).double() for leaf in tree.values()])


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors; 0 where one of them is zero."""
    lengths = float(a.norm() * b.norm())
    return 0.0 if lengths == 0 else float(a @ b) / lengths


def ratio(value: float, unit: float) -> float:
    """value / unit, nan for a unit of zero."""
    return value / unit if unit else math.nan


def accuracy(candidate: Candidate, groups: Sequence[Group], exacts: Sequence[Tree], draws: int) -> Accuracy:
    """The columns about values. One that gives the same for two streams of noise is drawn once.

    Raises UserError where the estimator does not fit the problem.
    """
    first, second = (candidate.estimate(groups[0], generator("diagnose", 0, draw)) for draw in range(2))
    begun = [flat(first[0]), flat(second[0])]
    if torch.equal(begun[0].nan_to_num(), begun[1].nan_to_num()):
        draws = 1
    steps = [
        _of_step(_draws(candidate, group, number, draws, [] if number else begun[:draws]), flat(exact))
        for number, (group, exact) in enumerate(zip(groups, exacts, strict=True))
    ]
    means = [sum(values) / len(steps) for values in zip(*steps, strict=True)]
    cosines, norms, bias, variance = means
    residual = next((float(value) for key, value in first[1].items() if key.endswith("residual")), None)
    return Accuracy(cosines, norms, bias, math.sqrt(variance / draws), math.sqrt(variance), draws, residual)


def _draws(
    candidate: Candidate, group: Group, number: int, draws: int, begun: list[Tensor]
) -> Iterator[Tensor]:
    """Estimates of a step by streams of their own; `begun` are the first of them."""
    yield from begun
    for draw in range(len(begun), draws):
        yield flat(candidate.estimate(group, generator("diagnose", number, draw))[0])


def _of_step(found: Iterator[Tensor], exact: Tensor) -> tuple[float, float, float, float]:
    """Mean cosine, mean relative norm, relative bias, relative variance of the draws of one step."""
    unit = float(exact.norm())
    cosines, norms, squares, total = 0.0, 0.0, 0.0, torch.zeros_like(exact)
    count = 0
    for grad in found:
        error = grad - exact
        cosines, norms = cosines + cosine(grad, exact), norms + float(grad.norm())
        squares, total, count = squares + float(error @ error), total + error, count + 1
    bias = float(total.norm()) / count
    spread = max(squares - count * bias**2, 0.0) / (count - 1) if count > 1 else 0.0
    if not math.isfinite(squares):
        spread = squares
    return cosines / count, ratio(norms / count, unit), ratio(bias, unit), ratio(spread, unit**2)
