"""Sampling a Gaussian process point by point, against the joint normal law of all points at once."""

import math

import pytest
import torch

from metalearn.registry import UserError

KERNELS = ("rbf", "matern52")


def small(make, kernel="rbf", *more):
    return make("gaussian_process", "dimension=3", "batch=4", "queries=12", f"kernel={kernel}", *more)


def asked(task, points):
    """Values [batch time] at points [batch time dimension], and the state at the end."""
    state, values = task.begin(task.batch("train", 2)), []
    for x in points.unbind(1):
        value, state = task.query(state, x)
        values.append(value)
    return torch.stack(values, 1), state


def points_of(task, count=12, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(task.options.batch, count, task.options.dimension, generator=rng, dtype=torch.float64)


def dense(task, points):
    """The covariance by the kernels' formulas, one pair at a time."""
    count, options = len(points), task.options
    matrix = torch.eye(count, dtype=torch.float64) * options.jitter
    for i in range(count):
        for j in range(count):
            r = (points[i] - points[j]).norm().item() / options.length_scale
            root = math.sqrt(5) * r
            shape = (1 + root + root**2 / 3) * math.exp(-root)
            shape = math.exp(-(r**2) / 2) if options.kernel == "rbf" else shape
            matrix[i, j] += options.variance * shape
    return matrix


@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_one_draw_of_all_points(make, kernel):
    """Cholesky factor of the full covariance times the same noise."""
    task = small(make, kernel, "variance=1.7", "length_scale=0.4")
    points = points_of(task)
    values, _ = asked(task, points)
    noise = task.batch("train", 2).x
    for row in range(4):
        expected = torch.linalg.cholesky(dense(task, points[row])) @ noise[row]
        torch.testing.assert_close(values[row], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_predicts_by_the_textbook(make, kernel):
    """k^T K^-1 y and k - k^T K^-1 k, jitter in the value's own variance."""
    task = small(make, kernel)
    points, new = points_of(task, 7), points_of(task, 5, seed=1)
    values, state = asked(task, points)
    mean, deviation = task.predict(state, new)
    for row in range(4):
        joint = dense(task, torch.cat([points[row], new[row]]))
        known, cross, own = joint[:7, :7], joint[:7, 7:], joint[7:, 7:]
        solved = torch.linalg.solve(known, cross)
        torch.testing.assert_close(mean[row], solved.T @ values[row], rtol=1e-6, atol=1e-6)
        variance = (own - cross.T @ solved).diagonal()
        torch.testing.assert_close(deviation[row].square(), variance, rtol=1e-6, atol=1e-8)


def test_before_any_query_it_is_the_prior(make):
    task = small(make, "rbf", "variance=2.5")
    mean, deviation = task.predict(task.begin(task.batch("train", 0)), points_of(task, 5))
    assert (mean == 0).all()
    torch.testing.assert_close(deviation, torch.full((4, 5), math.sqrt(2.5 + 1e-6), dtype=torch.float64))


def test_a_point_asked_again_answers_the_same(make):
    """But for the jitter: the covariance would be singular without it."""
    task = small(make)
    points = points_of(task, 6)
    values, _ = asked(task, torch.cat([points, points], 1))
    assert values.isfinite().all()
    assert (values[:, :6] - values[:, 6:]).abs().max() < 1e-2


def test_the_law_is_the_priors(make):
    """Over many functions: mean 0, variance 1, correlation exp(-1/2) at one length scale."""
    task = make("gaussian_process", "dimension=1", "batch=20000", "queries=2", "length_scale=0.25")
    first = torch.full((20_000, 1), 0.3, dtype=torch.float64)
    values, _ = asked(task, torch.stack([first, first + 0.25], 1))
    assert values.mean().abs() < 0.02
    covariance = torch.cov(values.T)
    assert covariance[0, 0].item() == pytest.approx(1, abs=0.03)
    assert covariance[0, 1].item() == pytest.approx(math.exp(-0.5), abs=0.03)


@pytest.mark.parametrize("kernel", ["rbf", pytest.param("matern52", marks=pytest.mark.slow)])
def test_the_whole_trajectory_is_differentiable_in_its_points(make, kernel):
    task = small(make, kernel, "jitter=0.01")
    points = points_of(task, 3).requires_grad_()
    torch.autograd.gradcheck(lambda x: asked(task, x)[0], points, eps=1e-6, atol=1e-5)


def test_a_repeated_point_has_a_finite_gradient(make):
    for kernel in KERNELS:
        task = small(make, kernel)
        points = points_of(task, 1).expand(-1, 3, -1).clone().requires_grad_()
        (grad,) = torch.autograd.grad(asked(task, points)[0].sum(), points)
        assert grad.isfinite().all()


def test_too_many_questions_are_refused(make):
    task = small(make)
    with pytest.raises(UserError, match=r"task.queries: got 12"):
        asked(task, points_of(task, 13))
