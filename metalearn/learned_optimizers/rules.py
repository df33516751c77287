"""Update rules: what turns gradients into the next parameters, learned or written by hand."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.inner_optimizers import (
    adam,
    adam_slots,
    adamw,
    nadam,
    nadam_slots,
    rmsprop,
    rmsprop_slots,
    sgd,
    sgd_slots,
)
from metalearn.learned_optimizers.config import TunedOptimizersOptions
from metalearn.learned_optimizers.layout import Layout
from metalearn.problem import Inner
from metalearn.tree import Tree

NAMES = ("sgd", "momentum", "nag", "rmsprop", "adam", "adamw", "nadam")
SLOTS = {"rmsprop": rmsprop_slots, "adam": adam_slots, "adamw": adam_slots, "nadam": nadam_slots}


class UpdateRule(ABC):
    """An optimizer as a pure function of its meta-parameters, for several problems side by side.

    Parameters and gradients are `{"theta": [problems coordinates]}`; `layout` says which coordinates make up
    a tensor. All coordinates of all problems go through the same few products.
    """

    options: Any  # the dataclass that it was built from

    @abstractmethod
    def init(self, rng: torch.Generator) -> Tree:
        """Fresh meta-parameters, on the CPU; none for a rule written by hand."""

    @abstractmethod
    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:
        """Its memory before the first step; every leaf has the problems in front."""

    @abstractmethod
    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:
        """One step, differentiable in meta-parameters, place and gradients."""


@runtime_checkable
class ReplayedRule(Protocol):
    """A rule with a joint way back through steps from known gradients (see `hypergradient.replay`)."""

    def replays(self, meta: Tree, inner: Inner) -> bool:
        """Whether it has one for these."""
        ...

    def replay(self, meta: Tree, start: Inner, grads: Tree, after: Inner) -> Inner:
        """`after`, the parameters after every step and the slots after the last, in a graph."""
        ...


class HandRule(UpdateRule):
    """One of `NAMES` with a learning rate; it has no meta-parameters."""

    def __init__(self, name: str, learning_rate: float, options: TunedOptimizersOptions) -> None:
        self.name, self.learning_rate, self.options = name, learning_rate, options

    def init(self, rng: torch.Generator) -> Tree:  # noqa: ARG002
        """Nothing."""
        return {}

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:  # noqa: ARG002
        """Zeros; the count of steps is one for all problems, which start together."""
        return SLOTS.get(self.name, sgd_slots)({"theta": theta})

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:  # noqa: ARG002
        """As its namesake in `torch.optim`; only adamw has weight decay."""
        options, state = self.options, (inner.params, inner.slots, grads)
        if self.name in ("adam", "adamw", "nadam"):
            first, second = options.betas
            settings = (self.learning_rate, (first, second), options.epsilon)
            if self.name == "nadam":
                return nadam(*state, *settings, options.momentum_decay)
            if self.name == "adamw":
                return adamw(*state, *settings, options.weight_decay)
            return adam(*state, *settings, weight_decay=0.0)
        if self.name == "rmsprop":
            return rmsprop(*state, self.learning_rate, options.alpha, options.epsilon, weight_decay=0.0)
        momentum = 0.0 if self.name == "sgd" else options.momentum
        return sgd(*state, self.learning_rate, momentum, weight_decay=0.0, nesterov=self.name == "nag")
