"""Our optimizers against torch's over many steps, and the safety of their derivatives."""

import pytest
import torch

from metalearn.inner_optimizers import adam, adam_slots, rmsprop, rmsprop_slots, safe_sqrt, sgd, sgd_slots
from metalearn.tree import gradient

STEPS = 200
CASES = {
    "plain": (torch.optim.SGD, {"lr": 0.05}, {}),
    "decay": (torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}, {"weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, {"momentum": 0.9}),
    "darts": (
        torch.optim.SGD,
        {"lr": 0.025, "momentum": 0.9, "weight_decay": 3e-4},
        {"momentum": 0.9, "weight_decay": 3e-4},
    ),
    "nesterov": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
    "adam": (torch.optim.Adam, {"lr": 0.05}, {"betas": (0.9, 0.999), "epsilon": 1e-8}),
    "adam decay": (
        torch.optim.Adam,
        {"lr": 3e-4, "betas": (0.5, 0.999), "weight_decay": 1e-3},
        {"betas": (0.5, 0.999), "epsilon": 1e-8, "weight_decay": 1e-3},
    ),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.03}, {"alpha": 0.99, "epsilon": 1e-8}),
    "rmsprop decay": (
        torch.optim.RMSprop,
        {"lr": 0.03, "alpha": 0.9, "weight_decay": 0.1},
        {"alpha": 0.9, "epsilon": 1e-8, "weight_decay": 0.1},
    ),
}
OURS = {
    torch.optim.SGD: (sgd, sgd_slots, {"momentum": 0.0, "weight_decay": 0.0}),
    torch.optim.Adam: (adam, adam_slots, {"weight_decay": 0.0}),
    torch.optim.RMSprop: (rmsprop, rmsprop_slots, {"weight_decay": 0.0}),
}


def start(dtype=torch.float64):
    rng = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
        for name, shape in {"a": (3, 4), "b": (5,), "dead": (2,)}.items()
    }


def loss_of(params, index):
    """Skewed, not convex, noisy (near a noiseless minimum RMSprop is chaotic); `dead` has a zero gradient."""
    rng = torch.Generator().manual_seed(index)
    noise = torch.randn(3, 4, generator=rng, dtype=torch.float64).to(params["a"].dtype)
    skewed = params["a"].sin() * torch.arange(1, 5) + 2 * noise * params["a"]
    return skewed.sum() + (params["b"] ** 4).sum() + 0 * params["dead"].sum()


def ours(kind, rate, settings, params, steps=STEPS):
    step, fresh, defaults = OURS[kind]
    slots = fresh(params)
    for index in range(steps):
        leaves = {key: leaf.detach().requires_grad_() for key, leaf in params.items()}
        grads = gradient(loss_of(leaves, index), leaves)
        params, slots = step(params, slots, grads, rate, **(defaults | settings))
    return params


def torchs(kind, options, params):
    leaves = {key: leaf.clone().requires_grad_() for key, leaf in params.items()}
    optimizer = kind(list(leaves.values()), **options, foreach=False)
    for index in range(STEPS):
        optimizer.zero_grad()
        loss_of(leaves, index).backward()
        optimizer.step()
    return {key: leaf.detach() for key, leaf in leaves.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
def test_equals_torch_over_many_steps(case, dtype, allowed):
    kind, options, settings = CASES[case]
    params = start(dtype)
    found, expected = ours(kind, options["lr"], settings, params), torchs(kind, options, params)
    assert not torch.equal(expected["a"], params["a"])
    torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)
    assert all(leaf.dtype == dtype for leaf in found.values())


@pytest.mark.parametrize("case", CASES)
def test_learning_rate_may_be_a_tensor(case):
    kind, options, settings = CASES[case]
    rate = torch.tensor(options["lr"], dtype=torch.float64, requires_grad=True)
    found = ours(kind, rate, settings, start(), steps=3)
    torch.testing.assert_close(found, ours(kind, options["lr"], settings, start(), steps=3))
    step = 1e-6
    assert torch.autograd.grad(found["a"].sum(), rate)[0].isfinite()
    one = ours(kind, rate, settings, start(), steps=1)["a"].sum()
    more = ours(kind, options["lr"] + step, settings, start(), steps=1)["a"].sum()
    torch.testing.assert_close(torch.autograd.grad(one, rate)[0], (more - one.detach()) / step)


@pytest.mark.parametrize(("step", "fresh", "settings"), [
    (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 0.1}),
    (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (adam, adam_slots, {"betas": (0.9, 0.99), "epsilon": 1e-2, "weight_decay": 0.1}),
    (rmsprop, rmsprop_slots, {"alpha": 0.9, "epsilon": 1e-2, "weight_decay": 0.1}),
])  # fmt: skip
def test_derivatives_by_everything(step, fresh, settings):
    """gradcheck of two steps by parameters, gradient and learning rate."""

    def two_steps(w, grad, rate):
        params, slots = {"w": w}, fresh({"w": w})
        params, slots = step(params, slots, {"w": grad}, rate, **settings)
        return step(params, slots, {"w": grad.sin()}, rate, **settings)[0]["w"]

    rng = torch.Generator().manual_seed(5)
    w, grad = (torch.randn(4, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2))
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(two_steps, (w, grad, rate))


@pytest.mark.parametrize(("step", "fresh", "settings"), [
    (adam, adam_slots, {"betas": (0.9, 0.999), "epsilon": 1e-3, "weight_decay": 0.0}),
    (rmsprop, rmsprop_slots, {"alpha": 0.99, "epsilon": 1e-3, "weight_decay": 0.0}),
])  # fmt: skip
def test_derivative_at_a_zero_gradient_is_the_true_one(step, fresh, settings):
    """autograd's own square root would give NaN; the true slope of lr g / (|g| c + eps) at 0 is lr / eps."""
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    grad = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    moved = step(params, fresh(params), {"w": grad}, 0.1, **settings)[0]["w"]
    torch.testing.assert_close(torch.autograd.grad(moved.sum(), grad)[0].item(), -0.1 / 1e-3)


def test_safe_sqrt_differs_from_sqrt_in_its_slope_at_zero_only():
    x = torch.tensor([0.0, 1e-30, 4.0], dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(safe_sqrt(x).sum(), x)[0]
    assert torch.equal(safe_sqrt(x), x.sqrt())
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.5e15, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("fresh", [sgd_slots, adam_slots, rmsprop_slots])
def test_fresh_slots_are_zero_and_lie_with_the_parameters(fresh):
    slots = fresh(start(torch.float32))
    assert all((leaf == 0).all() for leaf in slots.values())
    assert {leaf.device.type for leaf in slots.values()} == {"cpu"}
