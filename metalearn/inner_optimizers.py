"""Optimizers as pure functions, differentiable in parameters, gradients and learning rate.

Each takes parameters, slots and gradients and returns the next parameters and slots; fresh slots come from
the function `*_slots`. The results are those of the namesakes in `torch.optim`.
"""

import torch
from torch import Tensor

from metalearn.problem import Inner
from metalearn.tree import Tree, add


def sgd_slots(params: Tree) -> Tree:
    """A zero momentum buffer for each parameter."""
    return _zeros(params, "momentum")


def sgd(
    params: Tree,
    slots: Tree,
    grads: Tree,
    learning_rate: float | Tensor,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> Inner:
    """Gradient descent as `torch.optim.SGD` (dampening 0); without momentum the slots pass unused."""
    if weight_decay:
        grads = add(grads, params, weight_decay)
    if not momentum:
        return Inner(add(params, grads, -learning_rate), slots)
    buffers = {key: momentum * slots[f"momentum/{key}"] + grad for key, grad in grads.items()}
    direction = add(grads, buffers, momentum) if nesterov else buffers
    return Inner(add(params, direction, -learning_rate), _named("momentum", buffers))


def adam_slots(params: Tree) -> Tree:
    """Zero moments for each parameter, and the count of steps (float64, as its powers correct the bias)."""
    return _zeros(params, "first") | _zeros(params, "second") | {"steps": _no_steps(params)}


def adam(
    params: Tree,
    slots: Tree,
    grads: Tree,
    learning_rate: float | Tensor,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> Inner:
    """Adam as `torch.optim.Adam` (weight decay is added to the gradient)."""
    if weight_decay:
        grads = add(grads, params, weight_decay)
    steps = slots["steps"] + 1
    first, second = _moments(slots, grads, betas)
    rate, correction = learning_rate / (1 - betas[0] ** steps), (1 - betas[1] ** steps).sqrt()
    moved = {
        key: leaf - (rate * (first[key] / (safe_sqrt(second[key]) / correction + epsilon))).to(leaf.dtype)
        for key, leaf in params.items()  # the rate's float64 would be a lone number's type too
    }
    return Inner(moved, _named("first", first) | _named("second", second) | {"steps": steps})


def adamw(
    params: Tree,
    slots: Tree,
    grads: Tree,
    learning_rate: float | Tensor,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> Inner:
    """Adam as `torch.optim.AdamW` (weight decay shrinks the parameters); slots as `adam_slots`."""
    shrunk = {key: leaf * (1 - learning_rate * weight_decay) for key, leaf in params.items()}
    return adam(shrunk, slots, grads, learning_rate, betas, epsilon, weight_decay=0.0)


def nadam_slots(params: Tree) -> Tree:
    """As Adam's, and the product of the momenta so far."""
    return adam_slots(params) | {"momenta": _no_steps(params) + 1}


def nadam(
    params: Tree,
    slots: Tree,
    grads: Tree,
    learning_rate: float | Tensor,
    betas: tuple[float, float],
    epsilon: float,
    momentum_decay: float,
) -> Inner:
    """Adam with Nesterov's momentum, as `torch.optim.NAdam` without weight decay (Dozat 2016)."""
    steps = slots["steps"] + 1
    here, ahead = (betas[0] * (1 - 0.5 * 0.96 ** (at * momentum_decay)) for at in (steps, steps + 1))
    momenta = slots["momenta"] * here
    first, second = _moments(slots, grads, betas)
    correction = (1 - betas[1] ** steps).sqrt()
    of_grad, of_first = (1 - here) / (1 - momenta), ahead / (1 - momenta * ahead)
    moved = {}
    for key, leaf in params.items():
        direction = of_grad * grads[key] + of_first * first[key]
        step = learning_rate * direction / (safe_sqrt(second[key]) / correction + epsilon)
        moved[key] = leaf - step.to(leaf.dtype)
    memory = _named("first", first) | _named("second", second)
    return Inner(moved, memory | {"steps": steps, "momenta": momenta})


def rmsprop_slots(params: Tree) -> Tree:
    """A zero mean square for each parameter."""
    return _zeros(params, "second")


def rmsprop(
    params: Tree,
    slots: Tree,
    grads: Tree,
    learning_rate: float | Tensor,
    alpha: float,
    epsilon: float,
    weight_decay: float,
) -> Inner:
    """RMSprop as `torch.optim.RMSprop` (not centred, no momentum)."""
    if weight_decay:
        grads = add(grads, params, weight_decay)
    second = _mean_square(slots, "second", grads, alpha)
    moved = {
        key: leaf - learning_rate * (grads[key] / (safe_sqrt(second[key]) + epsilon))
        for key, leaf in params.items()
    }
    return Inner(moved, _named("second", second))


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root with derivative 0 at 0.

    There the first moment is 0 too and the true derivative of their quotient has no term from the root;
    autograd's own infinity would make it NaN.
    """
    none = x <= 0  # NaN stays
    return torch.where(none, 0.0, torch.where(none, 1.0, x).sqrt())


def _moments(slots: Tree, grads: Tree, betas: tuple[float, float]) -> tuple[Tree, Tree]:
    """Adam's running means of the gradients and of their squares."""
    first = {key: torch.lerp(slots[f"first/{key}"], grad, 1 - betas[0]) for key, grad in grads.items()}
    return first, _mean_square(slots, "second", grads, betas[1])


def _mean_square(slots: Tree, slot: str, grads: Tree, decay: float) -> Tree:
    return {key: decay * slots[f"{slot}/{key}"] + (1 - decay) * grad * grad for key, grad in grads.items()}


def _zeros(params: Tree, slot: str) -> Tree:
    return _named(slot, {key: torch.zeros_like(leaf) for key, leaf in params.items()})


def _named(slot: str, tree: Tree) -> Tree:
    return {f"{slot}/{key}": leaf for key, leaf in tree.items()}


def _no_steps(params: Tree) -> Tensor:
    device = next(iter(params.values())).device
    return torch.zeros((), dtype=torch.float64, device=device)
