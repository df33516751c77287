"""Independent answers that hypergradients are held to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metalearn.hypergradient.base import HyperGradient, Segment
from metalearn.hypergradient.config import (
    FiniteDifferenceOptions,
    FirstOrderOptions,
    TruncatedOptions,
    UnrolledOptions,
)
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.unroll import Truncated, Unrolled
from metalearn.problem import Inner, Problem, inner_step
from metalearn.tree import Tree, detach, norm

STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # fourth order


def _central_differences(function: Callable[[Tree], Tensor], meta: Tree, step: float = 1e-3) -> Tree:
    """d function / d meta, one coordinate at a time, without any autograd on `meta`."""
    grad = {key: torch.zeros_like(leaf) for key, leaf in meta.items()}
    for key, leaf in meta.items():
        for index in range(leaf.numel()):
            for side, weight in STENCIL.items():
                moved = {name: value.detach().clone() for name, value in meta.items()}
                moved[key].view(-1)[index] += side * step
                grad[key].view(-1)[index] += weight * function(moved).detach() / step
    return grad


def _play(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> Tensor:
    """The sum of outer losses of an inner run, by plain steps: values only."""
    total = torch.zeros((), dtype=torch.float64)
    for step in range(len(segment.inner) + 1):
        if step in segment.outer:
            total = total + problem.outer_loss(meta, inner.params, segment.outer[step]).detach()
        if step < len(segment.inner):
            inner = inner_step(problem, meta, inner, segment.inner[step]).detach()
    return total


def _relative_error(found: Tree, expected: Tree) -> float:
    """||found - expected|| / ||expected||, over all leaves."""
    difference = {key: found[key] - expected[key] for key in expected}
    return float(norm(detach(difference)) / norm(detach(expected)))


def _estimator(name: str, setting: float = 0) -> HyperGradient:
    """An estimator by name, with its radius or window."""
    if name == "first_order":
        return FirstOrder(FirstOrderOptions(name))
    if name == "finite_difference":
        return FiniteDifference(FiniteDifferenceOptions(name, setting))
    return (
        Unrolled(UnrolledOptions(name, False))
        if name == "unrolled"
        else Truncated(TruncatedOptions(name, int(setting)))
    )


@pytest.fixture(scope="session")
def central_differences():
    return _central_differences


@pytest.fixture(scope="session")
def play():
    return _play


@pytest.fixture(scope="session")
def relative_error():
    return _relative_error


@pytest.fixture(scope="session")
def estimator():
    return _estimator
