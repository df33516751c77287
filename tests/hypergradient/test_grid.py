"""The proof: every estimator x inner optimizer x kind of network, in float64 against an independent answer.

The answer is the whole inner run differentiated numerically, one and the same for all exact estimators; for
`truncated` with the run before its window held; for `first_order` the outer loss alone; for the implicit ones
the inner optimum itself, found by Newton's method. The estimators that sample have statistical tests of
their own.
"""

import functools

import pytest
import torch

from metalearn.problem import inner_step, loss_and_gradient
from metalearn.rng import generator

OPTIMIZERS = ["sgd", "momentum", "adam"]
NETWORKS = ["mlp", "conv", "dropout", "lstm_cell", "hyperlstm_cell"]
WITH_LAYER_NORM = [*NETWORKS, "normed_lstm_cell"]  # whose curvature makes convergence slow: for unrolls only
STEPS = 2


@pytest.fixture(scope="module")
def cell(regression, central_differences, play):
    """(network, optimizer, inner steps, scored steps) -> problem, meta, carry, segment, answer; kept."""

    @functools.cache
    def make(kind, update, steps, *scored):
        problem = regression(kind, update)
        meta, carry, segment = problem.meta(2), problem.warm(), problem.segment(steps, *scored)
        answer = central_differences(lambda moved: play(problem, moved, carry, segment), meta)
        return problem, meta, carry, segment, answer

    return make


@pytest.fixture(scope="module")
def agree(relative_error):
    """Leaf by leaf, so that no large one hides a small one; all of them matter."""

    def check(found, answer, allowed):
        assert set(found) == set(answer)
        for key, leaf in answer.items():
            assert leaf.norm() > 1e-4, key
            assert relative_error({key: found[key]}, {key: leaf}) < allowed, key

    return check


EXACT = {  # estimator, its setting, its other options
    "unrolled": ("unrolled", 0, {}),
    "recompute": ("unrolled", 0, {"recompute": True}),
    "truncated": ("truncated", STEPS, {}),
    "forward": ("forward", 3, {}),  # five meta-parameters in two passes
}


@pytest.mark.parametrize("kind", WITH_LAYER_NORM)
@pytest.mark.parametrize("update", OPTIMIZERS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_estimators(name, update, kind, cell, agree, estimator):
    problem, meta, carry, segment, answer = cell(kind, update, STEPS, 1, STEPS)
    name, setting, others = EXACT[name]
    found = estimator(name, setting, **others).estimate(problem, meta, carry, segment, generator())
    agree(found.grad, answer, 1e-6)


@pytest.mark.parametrize("kind", WITH_LAYER_NORM)
@pytest.mark.parametrize("update", OPTIMIZERS)
def test_finite_difference(update, kind, cell, agree, estimator):
    problem, meta, carry, segment, answer = cell(kind, update, 1, 1)
    found = estimator("finite_difference", 3e-4).estimate(problem, meta, carry, segment, generator())
    agree(found.grad, answer, 1e-6)


@pytest.mark.parametrize("kind", WITH_LAYER_NORM)
@pytest.mark.parametrize("update", OPTIMIZERS)
def test_truncated_with_the_early_part_held(
    update, kind, cell, agree, estimator, central_differences, play, relative_error
):
    problem, meta, carry, segment, whole = cell(kind, update, STEPS, 1, STEPS)
    held = inner_step(problem, meta, carry, segment.inner[0]).detach()
    late = segment.split(1)[1]
    answer = central_differences(lambda moved: play(problem, moved, held, late), meta)
    found = estimator("truncated", 1).estimate(problem, meta, carry, segment, generator())
    agree(found.grad, answer, 1e-6)
    assert relative_error(found.grad, whole) > 1e-2


@pytest.mark.parametrize("kind", WITH_LAYER_NORM)
@pytest.mark.parametrize("update", OPTIMIZERS)
def test_first_order(update, kind, cell, estimator, central_differences, relative_error):
    """The outer loss's own derivative where the segment starts; here the shift alone is in it."""
    problem, meta, carry, segment, _ = cell(kind, update, 1, 1)
    answer = central_differences(
        lambda moved: problem.outer_loss(moved, carry.params, segment.outer[1]).detach(), meta
    )
    found = estimator("first_order").estimate(problem, meta, carry, segment, generator())
    assert relative_error(found.grad, answer) < 1e-9
    assert answer["shift"].norm() > 1e-2
    assert (found.grad["penalty"] == 0).all()
    assert found.grad["rate"] == 0


RATES = {"sgd": -1.9, "momentum": -2.5, "adam": -1.6}  # logarithms
SETTLING = {  # Adam's usual epsilon lets a fixed rate circle about the minimum
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "momentum": {"momentum": 0.5, "weight_decay": 0.0},
    "adam": {"betas": (0.5, 0.9), "epsilon": 1.0, "weight_decay": 0.0},
}
CONVERGED = 80  # inner steps


class Optimum:
    """The minimum of a problem's inner loss on one batch, by Newton's method with one Hessian."""

    def __init__(self, problem, meta, params, batch):
        self.problem, self.batch, self.params = problem, batch, params
        start = torch.cat([leaf.flatten() for leaf in params.values()])
        self.hessian = torch.autograd.functional.hessian(
            lambda flat: problem.inner_loss(meta, self.tree(flat), batch), start
        )
        self.start = self.at(meta, start)

    def tree(self, flat):
        parts = flat.split([leaf.numel() for leaf in self.params.values()])
        return {key: part.view_as(self.params[key]) for key, part in zip(self.params, parts, strict=True)}

    def at(self, meta, flat):
        """Where the inner gradient is 0 to rounding under `meta`."""
        for _ in range(50):
            _, slopes = loss_and_gradient(self.problem, meta, self.tree(flat), self.batch)
            slope = torch.cat([leaf.flatten() for leaf in slopes.values()])
            if slope.norm() < 1e-13:
                return flat
            flat = flat - torch.linalg.solve(self.hessian, slope)
        raise AssertionError(f"Newton's method does not converge: {slope.norm()}")


@pytest.fixture(scope="module")
def optimum(regression, central_differences):
    """Network -> its optimum and the derivative of the outer loss there; the same for every optimizer."""

    @functools.cache
    def make(kind):
        problem, meta, segment, carry = settled(regression, kind, "momentum")
        best = Optimum(problem, meta, carry.params, segment.inner[0])

        def outer(moved):
            params = best.tree(best.at(moved, best.start))
            return problem.outer_loss(moved, params, segment.outer[STEPS]).detach()

        answer = central_differences(outer, {key: meta[key] for key in ("penalty", "shift")})
        return best, answer

    return make


@functools.cache
def settled(regression, kind, update):
    """A problem and where its inner run has converged: one batch, a strong proximal term, no weight decay."""
    problem = regression(kind, update, proximal=True)
    problem.settings = SETTLING[update]
    meta = problem.meta(2) | {"rate": torch.tensor(RATES[update], dtype=torch.float64)}
    meta["penalty"] = torch.tensor([0.5, 0.7], dtype=torch.float64)
    segment = problem.segment(STEPS, STEPS)
    segment = segment._replace(inner=[segment.inner[0]] * STEPS)
    inner = problem.init(meta, generator())
    for _ in range(CONVERGED):
        inner = inner_step(problem, meta, inner, segment.inner[0]).detach()
    return problem, meta, segment, inner


IMPLICIT = {"neumann": (60, {"step": 0.2}), "conjugate_gradient": (20, {})}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("update", OPTIMIZERS)
@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_estimators(name, update, kind, optimum, agree, regression, estimator):
    problem, meta, segment, carry = settled(regression, kind, update)
    best, answer = optimum(kind)
    setting, others = IMPLICIT[name]
    found = estimator(name, setting, **others).estimate(problem, meta, carry, segment, generator())
    torch.testing.assert_close(found.carry.params, best.tree(best.start), rtol=1e-7, atol=1e-8)
    agree({key: found.grad[key] for key in answer}, answer, 1e-6)
    assert found.grad["rate"] == 0
    assert found.metrics["hypergradient/residual"] < 1e-8
