"""One few-shot task as a bilevel problem: adapt from a learned initialisation, be judged on new examples."""

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.hypergradient.guard import check_module
from metalearn.inner_optimizers import sgd
from metalearn.machine import Machine, full
from metalearn.maml.config import MamlOptions
from metalearn.maml.networks import Conv4
from metalearn.network import Network
from metalearn.networks import Mlp
from metalearn.problem import Inner, Problem
from metalearn.registry import UserError
from metalearn.rng import seeded
from metalearn.task import Batch, Metrics, Task
from metalearn.tree import Tree

FIRST_ORDER = ("fomaml", "reptile")
QUIET = (Mlp, Conv4)  # they draw no random numbers; seeding them would cost more than a small one's pass


class FewShot(Problem):
    """Meta-parameters: the initialisation, and for Meta-SGD the inner learning rates.

    meta = {"init/NAME": a parameter of the network, "rate/NAME": the learning rate of each of its numbers}.
    Inner run: by how much the adapted parameters have left the initialisation, {"NAME": delta}, from 0 by
    gradient descent; ANIL adapts the last linear map alone (Raghu et al. 2020). All functions see one task:
    batches are [example ...]. Without second derivatives (fomaml, reptile) the hypergradient of an unroll is
    the outer loss's gradient at the adapted weights (Finn et al. 2017, section 5.2).

    The network is put in training mode: batch normalisation uses the batch at hand, so the queries of a task
    see each other, in evaluation too (transductive, as in Finn et al. 2017; from memory).
    """

    def __init__(self, task: Task, network: Network, machine: Machine, options: MamlOptions) -> None:
        self.task, self.machine, self.options = task, machine, options
        self.network, self.quiet = check_module(network).train(), type(network) in QUIET
        self.second_derivatives = options.algorithm not in FIRST_ORDER
        self.adapted = _adapted(network, options.algorithm)
        self.tied = len(list(network.parameters())) < len(
            list(network.named_parameters(remove_duplicate=False))
        )
        self.names = [name for name, _ in network.named_parameters()]
        self.proximal = options.proximal if options.algorithm == "imaml" else 0.0

    def start(self, network: nn.Module) -> Tree:
        """The meta-parameters before training: the network's own weights, rates of `inner_learning_rate`."""
        weights = {name: leaf.detach().clone() for name, leaf in network.named_parameters()}
        meta = {f"init/{name}": leaf for name, leaf in weights.items()}
        if self.options.algorithm == "meta_sgd":
            rate = self.options.inner_learning_rate
            meta |= {f"rate/{name}": torch.full_like(weights[name], rate) for name in self.adapted}
        return meta

    def init(self, meta: Tree, rng: torch.Generator | None = None) -> Inner:  # noqa: ARG002
        """At the initialisation."""
        return Inner({name: torch.zeros_like(meta[f"init/{name}"]) for name in self.adapted}, {})

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The task's loss; iMAML adds proximal / 2 times the squared distance from the initialisation."""
        return self.near(self.outer_loss(meta, params, batch), params)

    def near(self, loss: Float[Tensor, ""], params: Tree) -> Float[Tensor, ""]:
        """`loss` with iMAML's penalty."""
        if not self.proximal:
            return loss
        distance = torch.stack([delta.square().sum() for delta in params.values()]).sum()
        return loss + self.proximal / 2 * distance

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of gradient descent."""
        if self.options.algorithm != "meta_sgd":
            return sgd(*inner, grads, self.options.inner_learning_rate, momentum=0.0, weight_decay=0.0)
        moved = {name: delta - meta[f"rate/{name}"] * grads[name] for name, delta in inner.params.items()}
        return Inner(moved, inner.slots)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The task's loss."""
        return self.task.loss(self.score(meta, params, batch), batch)

    def score(self, meta: Tree, params: Tree, batch: Batch) -> Tensor:
        """The network's output for a batch of one task under initialisation + delta."""
        noise = nullcontext() if self.quiet else seeded(*batch.key)
        with noise, self.machine.autocast():
            weights = self.weights(meta, params)
            output = functional_call(self.network, weights, (batch.x,), tie_weights=self.tied)
            return full(output.logits)

    def judge(self, meta: Tree, params: Tree, batch: Batch) -> tuple[Float[Tensor, ""], Metrics]:
        """`outer_loss` and the task's metrics from one pass."""
        output = self.score(meta, params, batch)
        return self.task.loss(output, batch), self.task.metrics(output, batch)

    def weights(self, meta: Tree, params: Tree) -> Tree:
        """The network's parameters where an inner run stands: initialisation + delta."""
        weights = {name: meta[f"init/{name}"] for name in self.names}
        return weights | {name: weights[name] + delta for name, delta in params.items()}


def _adapted(network: Network, algorithm: str) -> list[str]:
    """The names of the parameters that an inner run moves. Raises UserError for ANIL without a linear map."""
    if algorithm != "anil":
        return [name for name, _ in network.named_parameters()]
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            "method.algorithm: got anil, which adapts the last linear map; "
            f"{type(network).__name__} has none; choose maml or another network"
        )
    return [f"{linear[-1]}.{name}" for name, _ in network.get_submodule(linear[-1]).named_parameters()]
