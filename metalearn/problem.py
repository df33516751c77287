"""Two levels of learning: meta-parameters steer how an inner run learns."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.task import Batch
from metalearn.tree import Tree, detach, gradient, require_grad


class Inner(NamedTuple):
    """Where an inner run stands."""

    params: Tree  # what it learns
    slots: Tree  # its optimizer's memory: momenta, hidden states

    def detach(self) -> "Inner":
        """The same place without its history."""
        return Inner(detach(self.params), detach(self.slots))


class Problem(ABC):
    """A bilevel problem as pure functions on explicit state.

    Every function is deterministic: noise comes from `rng.seeded(*batch.key)`, so two passes over one batch
    draw the same masks.
    """

    second_derivatives: bool = True  # False: gradients enter `update` as constants (L2L, fig. 2)
    shared_loss: bool = False  # True: outer_loss is inner_loss, so that one pass serves both

    @abstractmethod
    def init(self, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""

    @abstractmethod
    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """What the inner run descends."""

    @abstractmethod
    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One inner step from the gradient of `inner_loss`, differentiable in all three."""

    @abstractmethod
    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """What the meta-parameters descend."""


@runtime_checkable
class Batched(Protocol):
    """A problem that is many side by side and has a faster way to their gradients than autograd's.

    Its losses depend on the meta-parameters through the parameters alone.
    """

    def value_and_gradient(self, params: Tree, batch: Batch) -> tuple[Float[Tensor, ""], Tree]:
        """`inner_loss` and its gradient by the parameters, outside any graph."""
        ...

    def score_and_gradients(self, params: Tree, batch: Batch) -> tuple[Float[Tensor, ""], Tree, Tree]:
        """`outer_loss`, its gradient by the parameters and that of `inner_loss`, in one such pass."""
        ...


@runtime_checkable
class SideBySide(Protocol):
    """A problem of which many runs, under meta-parameters of their own, are one pass.

    Every leaf of parameters, slots and gradients has the particles in front, [particles problems ...], those
    of meta-parameters particles and lanes.
    """

    lanes: int  # meta-parameters of one particle: 1 for all problems, or one for each; 0: refuses

    def scores_and_gradients(
        self, params: Tree, batch: Batch
    ) -> tuple[Float[Tensor, "particles lanes"], Tree]:
        """`outer_loss` of each lane, and the gradients of `inner_loss`, outside any graph."""
        ...

    def updates(self, metas: Tree, inner: Inner, grads: Tree) -> Inner:
        """`update` of all particles."""
        ...


def loss_and_gradient(
    problem: Problem, meta: Tree, params: Tree, batch: Batch, create_graph: bool = False
) -> tuple[Float[Tensor, ""], Tree]:
    """`inner_loss` and its gradient by the parameters, which stays differentiable with `create_graph`."""
    if create_graph:
        params = {
            key: leaf if leaf.requires_grad else leaf.detach().requires_grad_()
            for key, leaf in params.items()
        }
    elif isinstance(problem, Batched):
        return problem.value_and_gradient(params, batch)
    else:
        params = require_grad(params)
    loss = problem.inner_loss(meta, params, batch)
    return loss, gradient(loss, params, create_graph=create_graph)


def visit(
    problem: Problem, meta: Tree, params: Tree, batch: Batch, scored: Batch | None
) -> tuple[Float[Tensor, ""] | None, Tree]:
    """`outer_loss` on `scored`, None without it, and the gradient of `inner_loss` on `batch`; no graph.

    One pass serves both where one can.
    """
    if scored is batch and isinstance(problem, Batched):
        score, _, grads = problem.score_and_gradients(params, batch)
        return score, grads
    loss, grads = loss_and_gradient(problem, meta, params, batch)
    if scored is None:
        return None, grads
    shared = problem.shared_loss and scored is batch
    return (loss if shared else problem.outer_loss(meta, params, scored)).detach(), grads


def inner_step(problem: Problem, meta: Tree, inner: Inner, batch: Batch, create_graph: bool = False) -> Inner:
    """One step of the inner run; with `create_graph` it stays differentiable in `meta` and `inner`."""
    second = create_graph and problem.second_derivatives
    _, grads = loss_and_gradient(problem, meta if second else detach(meta), inner.params, batch, second)
    return problem.update(meta, inner, grads)
