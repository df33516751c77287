"""Update rules: what turns gradients into the next parameters, learned or written by hand."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from metalearn.inner_optimizers import adam, adam_slots, rmsprop, rmsprop_slots, sgd, sgd_slots
from metalearn.learned_optimizers.config import TunedOptimizersOptions
from metalearn.problem import Inner
from metalearn.tree import Tree

NAMES = ("sgd", "momentum", "nag", "rmsprop", "adam")


class UpdateRule(ABC):
    """An optimizer as a pure function on `{"theta": ...}`, of any shape: it treats coordinates alike."""

    @abstractmethod
    def slots(self, theta: Float[Tensor, "..."]) -> Tree:
        """Its memory before the first step."""

    @abstractmethod
    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step, differentiable in all three."""


class HandRule(UpdateRule):
    """One of `NAMES` with a learning rate; it has no meta-parameters."""

    def __init__(self, name: str, learning_rate: float, options: TunedOptimizersOptions) -> None:
        self.name, self.learning_rate, self.options = name, learning_rate, options

    def slots(self, theta: Float[Tensor, "..."]) -> Tree:
        """Zeros."""
        fresh = {"rmsprop": rmsprop_slots, "adam": adam_slots}.get(self.name, sgd_slots)
        return fresh({"theta": theta})

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:  # noqa: ARG002
        """As its namesake in `torch.optim`, without weight decay."""
        options, state = self.options, (inner.params, inner.slots, grads)
        if self.name == "adam":
            first, second = options.betas
            return adam(*state, self.learning_rate, (first, second), options.epsilon, weight_decay=0.0)
        if self.name == "rmsprop":
            return rmsprop(*state, self.learning_rate, options.alpha, options.epsilon, weight_decay=0.0)
        momentum = 0.0 if self.name == "sgd" else options.momentum
        return sgd(*state, self.learning_rate, momentum, weight_decay=0.0, nesterov=self.name == "nag")
