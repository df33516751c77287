"""Hand-written rules in the place of the LSTM run exactly as their namesakes."""

import pytest
import torch

from metalearn.learned_optimizers.optimizees import Single
from metalearn.learned_optimizers.rollout import rollout
from metalearn.learned_optimizers.rules import NAMES, HandRule
from metalearn.learned_optimizers.run import Run
from metalearn.problem import inner_step
from metalearn.rng import generator

NAMESAKES = {
    "sgd": lambda theta: torch.optim.SGD([theta], 0.05),
    "momentum": lambda theta: torch.optim.SGD([theta], 0.05, momentum=0.9),
    "nag": lambda theta: torch.optim.SGD([theta], 0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda theta: torch.optim.RMSprop([theta], 0.05, alpha=0.99, eps=1e-8),
    "adam": lambda theta: torch.optim.Adam([theta], 0.05, betas=(0.9, 0.999), eps=1e-8),
    "adamw": lambda theta: torch.optim.AdamW([theta], 0.05, (0.9, 0.999), eps=1e-8, weight_decay=0.01),
    "nadam": lambda theta: torch.optim.NAdam([theta], 0.05, (0.9, 0.999), eps=1e-8, momentum_decay=0.004),
}


def _run(kit, name, task):
    """theta after five steps in the machinery of the learned optimizer, and the batches it saw."""
    optimizee = kit.optimizee(kit.learned(), kit.context(task))
    run = Run(HandRule(name, 0.05, kit.tuned()), optimizee, "train", (0,), second_derivatives=False)
    inner = run.init({}, generator(0))
    start, batches = inner.params["theta"], optimizee.batches("train", (0,), 0, 5)
    for batch in batches:
        inner = inner_step(run, {}, inner, batch)
    return optimizee, start, batches, inner.params["theta"].detach()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_agrees_with_torch(kit, float64, name, task):  # noqa: ARG001
    optimizee, start, batches, reached = _run(kit, name, getattr(kit, task)())
    theta = start.clone().requires_grad_()
    optimizer = NAMESAKES[name](theta)
    for batch in batches:
        optimizer.zero_grad()
        optimizee.total(theta, batch).backward()
        optimizer.step()
    torch.testing.assert_close(reached, theta.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_sgd_is_sgd_bit_for_bit(kit, task):
    optimizee, theta, batches, reached = _run(kit, "sgd", getattr(kit, task)())
    for batch in batches:
        leaf = theta.detach().requires_grad_()
        theta = theta - 0.05 * torch.autograd.grad(optimizee.total(leaf, batch), leaf)[0]
    assert torch.equal(reached, theta)


@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_adam_is_adam_bit_for_bit(kit, task):
    """Written here once more, from Kingma and Ba's algorithm 1."""
    optimizee, theta, batches, reached = _run(kit, "adam", getattr(kit, task)())
    first = second = torch.zeros_like(theta)
    for step, batch in enumerate(batches, 1):
        leaf = theta.detach().requires_grad_()
        grad = torch.autograd.grad(optimizee.total(leaf, batch), leaf)[0]
        first = torch.lerp(first, grad, 1 - 0.9)
        second = 0.999 * second + (1 - 0.999) * grad * grad
        count = torch.tensor(float(step), dtype=torch.float64)
        denominator = second.sqrt() / (1 - 0.999**count).sqrt() + 1e-8
        theta = theta - 0.05 / (1 - 0.9**count) * (first / denominator)
    assert torch.equal(reached, theta)


@pytest.mark.parametrize("name", NAMES)
def test_problems_at_once_equal_problems_one_by_one(kit, float64, name):  # noqa: ARG001
    """The rollout's batched pass against the engine's steps, problem by problem."""
    family = Single(kit.tuned(valid_problems=3), kit.context(kit.Blobs()))
    optimizee = family.optimizee
    rule = HandRule(name, 0.05, kit.tuned())
    curve = rollout(rule, {}, family, "valid")
    for problem in range(3):
        run = Run(rule, optimizee, "valid", (problem,), second_derivatives=False)
        inner = run.init({}, generator(0))
        for step in range(7):
            batch = optimizee.batches("valid", (problem,), step, 1)[0]
            loss = optimizee.total(inner.params["theta"], batch).detach()
            torch.testing.assert_close(curve[step, problem], loss)
            inner = inner_step(run, {}, inner, batch)
