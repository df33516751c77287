"""Independent answers that hypergradients are held to."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import metalearn.hypergradient  # noqa: F401  (registers the names)
from metalearn import registry
from metalearn.hypergradient.base import HyperGradient, Segment
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


SETTING = {  # what the one number of `estimator` means
    "finite_difference": "radius",
    "truncated": "window",
    "forward": "chunk",
    "neumann": "iterations",
    "conjugate_gradient": "iterations",
    "evolution": "pairs",
    "pes": "pairs",
}
OTHERS = {
    "unrolled": {"recompute": False},
    "neumann": {"step": 0.1, "damping": 0.0},
    "conjugate_gradient": {"damping": 0.0},
    "evolution": {"deviation": 0.01},
    "pes": {"deviation": 0.01},
}


def _estimator(name: str, setting: float = 0, **others: float) -> HyperGradient:
    """An estimator by name, with its radius, window, chunk, iterations or pairs; other options by name."""
    options = {"name": name, **OTHERS.get(name, {}), **others}
    if name in SETTING:
        options[SETTING[name]] = setting if name == "finite_difference" else int(setting)
    return registry.build("hypergradient", registry.entry("hypergradient", name).options(**options))


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
