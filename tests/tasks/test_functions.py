"""Function families against values worked out by hand, in float64."""

import pytest
import torch

from metalearn.task import Batch


def batch(x, y):
    return Batch(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64), ())


HAND = [  # task, constants of one function, theta, value
    ("quadratic", [[1.0, 2.0], [3.0, 4.0]], [1.0, 1.0], [1.0, -1.0], 8.0),
    ("quadratic", [[2.0, 0.0], [0.0, 3.0]], [2.0, -6.0], [1.0, -2.0], 0.0),
    ("rosenbrock", [0.0, 0.0], 100.0, [-1.2, 1.0], 24.2),
    ("rosenbrock", [0.5, -0.5], 100.0, [-0.7, 0.5], 24.2),
    ("rosenbrock", [0.0, 0.0, 0.0], 100.0, [1.0, 2.0, 3.0], 201.0),
    ("rosenbrock", [2.0, 3.0, 4.0], 7.0, [3.0, 4.0, 5.0], 0.0),
    ("rastrigin", [0.0, 0.0], 10.0, [0.5, 1.0], 21.25),
    ("rastrigin", [1.0, -1.0], 10.0, [1.25, -1.0], 10.0625),
    ("rastrigin", [1.0, -1.0], 10.0, [1.0, -1.0], 0.0),
]


@pytest.mark.parametrize(("name", "x", "y", "theta", "value"), HAND)
def test_values(make, name, x, y, theta, value):
    task = make(name)
    point = torch.tensor([theta], dtype=torch.float64)
    expected = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(task.loss(point, batch([x], [y])), expected)


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "rastrigin"])
def test_loss_is_the_mean_over_functions(make, name):
    task = make(name)
    functions = task.batch("train", 0)
    theta = torch.randn(task.options.batch, task.options.dimension)
    one_by_one = [
        task.loss(theta[i : i + 1], Batch(functions.x[i : i + 1], functions.y[i : i + 1], ()))
        for i in range(task.options.batch)
    ]
    torch.testing.assert_close(task.loss(theta, functions), torch.stack(one_by_one).mean())


def test_quadratic_has_the_papers_start_value(make):
    """E f(0) = E |y|^2 = 10 for standard normal entries (papers/l2l.md, section 4.1)."""
    task = make("quadratic", "batch=20000")
    assert task.loss(torch.zeros(20_000, 10), task.batch("train", 0)) == pytest.approx(10, abs=0.15)


def test_quadratic_by_the_code_is_uniform(make):
    drawn = make("quadratic", "distribution=uniform", "batch=1000").batch("train", 0)
    for entries in (drawn.x, drawn.y):
        assert 0 <= entries.min() < entries.max() < 1
        assert entries.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock", "rastrigin"])
def test_no_two_splits_share_a_function(make, name):
    task = make(name)
    splits = ("train", "valid", "test", "search_train", "search_valid")
    drawn = torch.cat([task.batch(split, index).x.flatten(1) for split in splits for index in range(3)])
    assert len(torch.unique(drawn, dim=0)) == len(drawn) == 15 * 128


def test_sweep_takes_a_partial_last_batch(make):
    task = make("quadratic", "batch=8", "evaluated=20")
    assert [len(functions.y) for functions in task.sweep("valid")] == [8, 8, 4]
    assert task.batches("valid") == 3


def test_rosenbrocks_walls_have_their_range(make):
    steepness = make("rosenbrock", "batch=5000").batch("train", 0).y
    assert 1 <= steepness.min() < 1.1
    assert 90 < steepness.max() <= 100
