"""Test functions at their known minima, their scale, and how instances are moved about."""

import math

import pytest
import torch

from metalearn.registry import UserError
from metalearn.task import Batch, Predicted, Queried

MINIMA = [  # published (Surjanovic and Bingham's library), to the digits printed there
    ("branin", (-math.pi, 12.275), 0.397887, 1e-6),
    ("branin", (math.pi, 2.275), 0.397887, 1e-6),
    ("branin", (9.42478, 2.475), 0.397887, 1e-6),
    ("goldstein_price", (0.0, -1.0), 3.0, 1e-9),
    ("hartmann3", (0.114614, 0.555649, 0.852547), -3.86278, 5e-6),
    ("hartmann6", (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573), -3.32237, 5e-6),
]
NAMES = ("branin", "goldstein_price", "hartmann3", "hartmann6")
STILL = ("translation=0", "scaling=[1,1]", "flip=false", "permute=false")


@pytest.mark.parametrize(("name", "place", "value", "within"), MINIMA)
def test_known_minima(make, name, place, value, within):
    """The published value, and no slope there."""
    point = torch.tensor([place], dtype=torch.float64, requires_grad=True)
    found = make(name).raw(point)
    assert found.item() == pytest.approx(value, abs=within)
    (slope,) = torch.autograd.grad(found.sum(), point)
    assert slope.abs().max() < 2e-2


@pytest.mark.parametrize("name", NAMES)
def test_mean_is_zero_and_variance_one_over_the_domain(make, name):
    task = make(name, *STILL, "batch=1")
    points = torch.quasirandom.SobolEngine(task.options.dimension, scramble=True, seed=5)
    drawn = points.draw(2**13, dtype=torch.float64)
    constants = task.batch("test", 0)
    values = task.values(drawn, constants.x, constants.y)
    assert values.mean().item() == pytest.approx(0, abs=1e-2)
    assert values.std().item() == pytest.approx(1, abs=2e-2)


def test_branins_minimum_is_where_the_paper_has_it(make):
    task = make("branin")
    assert (0.397887 - task.mean) / task.deviation == pytest.approx(-1.05, abs=5e-3)


@pytest.mark.parametrize("name", ["branin", "hartmann6"])
def test_instances_are_moved_within_bounds(make, name):
    task = make(name, "batch=400")
    matrix, shift = task.batch("train", 0)[:2]
    size = task.options.dimension
    assert shift.abs().max() <= 0.1
    assert shift.abs().max() > 0.099
    places = matrix != 0
    assert (places.sum(1) == 1).all()
    assert (places.sum(2) == 1).all()
    factors = matrix[places]
    assert 0.9 <= factors.abs().min() < 0.902
    assert 1.098 < factors.abs().max() <= 1.1
    assert (factors < 0).double().mean() == pytest.approx(0.5, abs=0.05)
    assert places.double().mean(0) == pytest.approx(torch.full((size, size), 1 / size).numpy(), abs=0.1)


def test_an_instance_is_the_function_elsewhere(make):
    """By hand: dimensions exchanged, the first flipped, shifted."""
    task = make("branin")
    matrix = torch.tensor([[[0.0, -1.1], [0.9, 0.0]]], dtype=torch.float64)
    shift = torch.tensor([[0.05, -0.1]], dtype=torch.float64)
    x = torch.tensor([[0.2, 0.7]], dtype=torch.float64)
    place = [0.5 + 0.05 - 1.1 * 0.2, 0.5 - 0.1 + 0.9 * -0.3]
    raw = task.raw(torch.tensor([[-5 + 15 * place[0], 15 * place[1]]], dtype=torch.float64))
    value, _ = task.query(task.begin(Batch(matrix, shift, ())), x)
    torch.testing.assert_close(value, (raw - task.mean) / task.deviation)


def test_still_is_the_function_itself(make):
    task = make("hartmann3", *STILL, "batch=4")
    drawn = task.batch("test", 0)
    x = torch.rand(4, 3, dtype=torch.float64)
    value, _ = task.query(task.begin(drawn), x)
    torch.testing.assert_close(value, (task.raw(x) - task.mean) / task.deviation)


def test_the_protocols_tell_them_apart(make):
    branin, process, quadratic = (make(name) for name in ("branin", "gaussian_process", "quadratic"))
    assert isinstance(branin, Queried)
    assert not isinstance(branin, Predicted)
    assert isinstance(process, Predicted)
    assert not isinstance(quadratic, Queried)


def test_a_range_that_is_none_is_refused(make_fresh):
    with pytest.raises(UserError, match=r"task.scaling: got \[1.1, 0.9\]"):
        make_fresh("branin", "scaling=[1.1,0.9]")
