"""The common memory: BFGS in three writes, and the two forms of it."""

import pytest
import torch

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.memory import LARGEST, MatrixMemory, PairMemory
from metalearn.registry import UserError
from metalearn.rng import generator

SIZE = 6
MEMORIES = [MatrixMemory(identity=True), PairMemory(identity=True, pairs=3 * 20)]


def _quadratics(problems):
    """Symmetric positive definite Hessians and starts."""
    root = torch.randn(problems, SIZE, SIZE, generator=generator("root")).double()
    start = torch.randn(problems, SIZE, generator=generator("start")).double()
    return root @ root.mT + 0.5 * torch.eye(SIZE).double(), start


def _dot(a, b):
    return (a * b).sum(-1, keepdim=True)


def _bfgs_writes(step, change, seen):
    """Left and right vectors of the three writes, from s, y and My; s.y and y.My are means times n."""
    rho = 1 / _dot(step, change)
    factor = rho + rho**2 * _dot(change, seen)
    left = torch.stack([-rho * step, -rho * seen, factor * step], 1)
    return left, torch.stack([seen, step, step], 1)


def _textbook(inverse, step, change):
    """(I - rho s y^T) H (I - rho y s^T) + rho s s^T (Nocedal and Wright, eq. 6.17)."""
    rho = 1 / _dot(step, change).unsqueeze(-1)
    outer = step.unsqueeze(2) * change.unsqueeze(1)
    left = torch.eye(SIZE).double() - rho * outer
    return left @ inverse @ left.mT + rho * step.unsqueeze(2) * step.unsqueeze(1)


def _dense(memory, slots, problems):
    """The operator as a matrix, column by column."""
    columns = torch.eye(SIZE).double()
    return torch.stack([memory.read(slots, column.expand(problems, -1)) for column in columns], 2)


@pytest.mark.parametrize("memory", MEMORIES)
def test_three_writes_are_the_update_of_bfgs(memory):
    """Sheet, section 5: M' = M - rho s (My)^T - rho (My) s^T + (rho + rho^2 y.My) s s^T."""
    hessian, _ = _quadratics(2)
    slots = memory.fresh(torch.zeros(2, SIZE).double())
    expected = torch.eye(SIZE).double().expand(2, -1, -1)
    for number in range(4):
        step = torch.randn(2, SIZE, generator=generator(number)).double()
        change = (hessian @ step.unsqueeze(2)).squeeze(2)
        slots = memory.write(slots, *_bfgs_writes(step, change, memory.read(slots, change)))
        expected = _textbook(expected, step, change)
        torch.testing.assert_close(_dense(memory, slots, 2), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_controller_set_by_hand_is_bfgs(memory):
    """It reads My and Mg and writes three products: quadratics of n coordinates end in n exact searches."""
    hessian, theta = _quadratics(3)
    slots = memory.fresh(theta)

    def gradient(theta):
        return (hessian @ theta.unsqueeze(2)).squeeze(2)

    for _ in range(SIZE):
        grad = gradient(theta)
        direction = -memory.read(slots, grad)
        length = -_dot(grad, direction) / _dot(direction, gradient(direction))
        step = length * direction
        change = gradient(theta + step) - grad
        slots = memory.write(slots, *_bfgs_writes(step, change, memory.read(slots, change)))
        theta = theta + step
    assert gradient(theta).abs().max() < 1e-6
    torch.testing.assert_close(_dense(memory, slots, 3), hessian.inverse(), rtol=1e-4, atol=1e-4)


def test_the_oldest_pairs_are_forgotten():
    memory = PairMemory(identity=False, pairs=4)
    slots = memory.fresh(torch.zeros(1, SIZE).double())
    drawn = torch.randn(3, 2, 1, 2, SIZE, generator=generator(0)).double()
    for left, right in drawn:
        slots = memory.write(slots, left, right)
    expected = sum(left[0].T @ right[0] for left, right in drawn[1:])
    torch.testing.assert_close(_dense(memory, slots, 1)[0], expected)


def _steps(kit, history, first, **changes):
    layout = Layout({"w": (3, 2), "b": (3,)}, torch.device("cpu"))
    rule = kit.build_rule("ntm_bfgs", history=history, first=first, preprocess="none", **changes)
    theta = torch.randn(2, 9, generator=generator("theta")).double()
    gradients = torch.randn(6, 2, 9, generator=generator("gradients")).double()
    return kit.follow(rule, kit.moved(rule), theta, gradients, layout).params["theta"]


@pytest.mark.parametrize("first", ["identity", "zero"])
def test_a_long_history_is_the_matrix(kit, first):
    """Five writes of six are read before the last update; with less history the two part."""
    matrix = _steps(kit, 1, first, memory="matrix")
    torch.testing.assert_close(_steps(kit, 5, first, memory="pairs"), matrix, rtol=1e-10, atol=1e-12)
    assert (_steps(kit, 1, first, memory="pairs") - matrix).abs().max() > 1e-6


def test_what_the_memory_begins_as_matters(kit):
    assert not torch.allclose(*(_steps(kit, 5, first, memory="matrix") for first in ("identity", "zero")))


def test_too_large_a_matrix_is_refused(kit):
    layout = Layout({"w": (LARGEST + 1,)}, torch.device("cpu"))
    theta = torch.zeros(1, LARGEST + 1)
    with pytest.raises(UserError, match=r"got matrix for 4097 coordinates.*rule\.memory=pairs"):
        kit.build_rule("ntm_bfgs").slots(theta, layout)
    assert kit.build_rule("ntm_bfgs", memory="pairs").slots(theta, layout)["left"].shape == (1, 30, 4097)
