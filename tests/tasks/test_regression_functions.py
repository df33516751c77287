"""Logistic regression and the lasso against values and gradients worked out apart, in float64."""

import math

import pytest
import torch

from metalearn.task import Batch

NAMES = ["logistic_regression", "lasso"]


def doubles(task, index=0):
    """A batch and points off its own, in float64."""
    x, y, key = task.batch("train", index)
    theta = torch.randn(len(x), task.options.dimension, dtype=torch.float64)
    return theta.requires_grad_(), Batch(x.double(), y.double(), key)


def gradients(task, theta, batch):
    """Of each function by its own point."""
    return len(theta) * torch.autograd.grad(task.loss(theta, batch), theta)[0]


def test_values_by_hand(make):
    lasso, logistic = make("lasso", "penalty=0.5"), make("logistic_regression", "l2=0.1")
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    theta = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    value = lasso.values(theta, x, torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    assert value.item() == pytest.approx((4 + 4) / 2 + 0.5 * 2)
    value = logistic.values(theta, x, torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    losses = math.log(1 + math.exp(1)), math.log(1 + math.exp(-1))
    assert value.item() == pytest.approx(sum(losses) / 2 + 0.05)  # the bias is not shrunk


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_of_logistic_regression(make, bias):
    """-mean_i y_i x_i / (1 + exp(y_i x_i theta)) + l2 weights."""
    task = make("logistic_regression", "batch=7", "l2=0.3", f"bias={bias}")
    theta, batch = doubles(task)
    point = theta.detach()
    wrong = 1 / (1 + (batch.y * torch.einsum("bed,bd->be", batch.x, point)).exp())
    expected = -(batch.x * (batch.y * wrong).unsqueeze(-1)).mean(1) + 0.3 * point
    if bias:
        expected[:, -1] -= 0.3 * point[:, -1]
    torch.testing.assert_close(gradients(task, theta, batch), expected)


def test_gradient_of_the_lasso(make):
    """A^T (A theta - b) + penalty sign(theta), the sign of 0 being 0."""
    task = make("lasso", "batch=7", "penalty=0.4")
    theta, batch = doubles(task)
    with torch.no_grad():
        theta[:, 3] = 0.0
    point = theta.detach()
    residual = torch.einsum("brd,bd->br", batch.x, point) - batch.y
    expected = torch.einsum("brd,br->bd", batch.x, residual) + 0.4 * point.sign()
    torch.testing.assert_close(gradients(task, theta, batch), expected)


def test_labels_are_the_sides_of_a_noisy_plane(make):
    """Without noise the examples can be told apart, with much of it they cannot; both sides are as common."""
    clean = make("logistic_regression", "batch=50", "noise=0", "l2=0")
    noisy = make("logistic_regression", "batch=50", "noise=3", "l2=0")
    reached = []
    for task in (clean, noisy):
        theta, batch = doubles(task)
        assert set(batch.y.unique().tolist()) == {-1.0, 1.0}
        assert batch.y.mean().abs() < 0.1
        assert (batch.x[..., -1] == 1).all()
        optimizer = torch.optim.LBFGS([theta], max_iter=300, line_search_fn="strong_wolfe")
        optimizer.step(lambda theta=theta, task=task, batch=batch: _backward(task, theta, batch))
        reached.append(task.loss(theta, batch).item())
    assert reached[0] < 0.02 < 0.3 < reached[1]


def _backward(task, theta, batch):
    theta.grad = None
    loss = task.loss(theta, batch)
    loss.backward()
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_every_function_is_scored_at_its_own_point(make, name):
    task = make(name, "batch=6")
    theta, batch = doubles(task)
    alone = [task.loss(theta[i : i + 1], Batch(batch.x[i : i + 1], batch.y[i : i + 1], ())) for i in range(6)]
    torch.testing.assert_close(torch.stack(alone).mean(), task.loss(theta, batch))
    splits = ("train", "valid", "test")
    drawn = torch.cat([task.batch(split, index).x.flatten(1) for split in splits for index in range(2)])
    assert len(torch.unique(drawn, dim=0)) == 36
