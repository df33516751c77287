"""Training one network as an inner run that hyper-parameters steer."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.hypergradient.guard import check_module
from metalearn.hyperparameters.config import InnerRunOptions
from metalearn.hyperparameters.space import Space
from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
from metalearn.machine import Machine, full
from metalearn.network import Network
from metalearn.problem import Inner, Problem
from metalearn.registry import UserError
from metalearn.rng import seeded
from metalearn.task import Batch, Metrics, Task
from metalearn.tree import Tree


class NetworkTraining(Problem):
    """Meta-parameters: a point of `Space`. Inner run: the network's weights from a fresh start.

    The slots count the steps, for learning rates that depend on them. Inner losses see the network in
    training mode (dropout by the batch's key), outer ones in evaluation mode and without penalty.
    """

    def __init__(
        self, task: Task, network: Callable[..., Network], machine: Machine, options: InnerRunOptions
    ) -> None:
        if task.spec.kind != "classification":
            raise UserError(
                f"method {options.name}: task {task.spec.name} is a {task.spec.kind}; choose a "
                "classification task, e.g. task=digits"
            )
        _check_betas(options)
        self.task, self.machine, self.options = task, machine, options
        self.fresh = network
        self.learner = check_module(_without_memory(network())).train()
        self.judge = network().eval()
        self.space = Space(options, _parameters(self.learner))

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        """A network started afresh, no momentum, no steps."""
        params = _parameters(self.fresh("start", int(torch.randint(2**62, (), generator=rng))))
        slots = adam_slots(params) if self.options.optimizer == "adam" else sgd_slots(params)
        step = torch.zeros((), dtype=torch.float64, device=self.machine.device)
        return Inner(params, slots | {"step": step})

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The task's loss and the penalty."""
        loss = self.task.loss(self._score(self.learner, params, batch), batch)
        return loss + self.space.penalty(meta, params) if self.space.penalised else loss

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:  # noqa: ARG002
        """The task's loss alone."""
        return self.task.loss(self._score(self.judge, params, batch), batch)

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of SGD or Adam, each group of parameters at its learning rate for this step."""
        params, slots = {}, {"step": inner.slots["step"] + 1}
        rates = self.space.rates(meta, inner.slots["step"])
        for group, names in self.space.groups.items():
            moved = self._move(inner, {name: grads[name] for name in names}, rates[group])
            params |= moved.params
            slots |= moved.slots
        return Inner({name: params[name] for name in inner.params}, {key: slots[key] for key in inner.slots})

    def metrics(self, params: Tree, batch: Batch) -> Metrics:
        """What the task measures, in evaluation mode."""
        return self.task.metrics(self._score(self.judge, params, batch), batch)

    def _move(self, inner: Inner, grads: Tree, rate: float | Tensor) -> Inner:
        """One step of the parameters that `grads` names."""
        options, names = self.options, list(grads)
        params = {name: inner.params[name] for name in names}
        slots = {
            key: leaf
            for key, leaf in inner.slots.items()
            if key == "steps" or key.partition("/")[2] in params
        }
        if options.optimizer == "adam":
            betas = (options.betas[0], options.betas[1])
            return adam(params, slots, grads, rate, betas, options.epsilon, weight_decay=0.0)
        return sgd(params, slots, grads, rate, options.momentum, weight_decay=0.0)

    def _score(self, network: nn.Module, params: Tree, batch: Batch) -> Tensor:
        with seeded(*batch.key), self.machine.autocast():
            return full(functional_call(network, params, (batch.x,)).logits)


def _parameters(network: nn.Module) -> Tree:
    return {name: leaf.detach() for name, leaf in network.named_parameters()}


def _without_memory(network: Network) -> Network:
    """`network`, if it is a pure function of parameters and batch. Raises UserError."""
    if list(network.buffers()):
        raise UserError(
            f"network {type(network).__name__}: keeps running statistics, which inner runs would share; "
            "choose network=mlp or convnet"
        )
    return network


def _check_betas(options: InnerRunOptions) -> None:
    if len(options.betas) != 2 or not all(0 <= beta < 1 for beta in options.betas):
        raise UserError(f"method.betas: got {options.betas}, must be two numbers from 0 up to but not 1")
