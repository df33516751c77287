"""Architecture search as a bilevel problem: alpha steers how a supernet's weights learn."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from metalearn.darts.clip import clip_backward, clip_step
from metalearn.darts.config import DartsOptions
from metalearn.darts.space import Mixture, SearchSpace, running_statistics_kept
from metalearn.inner_optimizers import sgd, sgd_slots
from metalearn.machine import Machine, full
from metalearn.network import Output
from metalearn.problem import Inner, Problem
from metalearn.rng import Key, seeded
from metalearn.task import Batch, Task
from metalearn.tree import Tree, detach

Mix = Callable[[Tree], Mixture]
Penalty = Callable[[Tree], Float[Tensor, ""] | None]


class ArchitectureProblem(Problem):
    """Meta-parameters: alpha. Inner run: the supernet's weights by gradient descent.

    Batch normalisation uses the batch at hand in every loss, and no loss moves its running statistics.
    `hidden` gives recurrent networks the state that a batch starts from, by the batch's key. `penalty` is
    what the outer loss has of alpha alone.
    """

    def __init__(
        self,
        task: Task,
        network: SearchSpace,
        machine: Machine,
        options: DartsOptions,
        mix: Mix,
        learning_rate: float,
        hidden: dict[tuple[Key, ...], Tree] | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        self.task, self.network, self.machine, self.options, self.mix = task, network, machine, options, mix
        self.learning_rate = learning_rate  # xi, the step of the unrolled weights
        self.momentum = options.momentum if options.unroll_momentum else 0.0
        self.weight_decay = options.weight_decay if options.unroll_weight_decay else 0.0
        self.hidden, self.passes = hidden or {}, 0
        self.penalty = penalty
        self.states: dict[tuple[Key, ...], Tree] = {}  # after each batch, of the last pass over it

    def init(self, meta: Tree, rng: torch.Generator) -> Inner:  # noqa: ARG002
        """The network's own weights, no momentum."""
        params = {key: leaf.detach().clone() for key, leaf in self.network.named_parameters()}
        return Inner(params, sgd_slots(params))

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The task's loss of the supernet in training mode."""
        with running_statistics_kept(self.network):
            return self.task.loss(self.score(meta, params, batch).logits, batch)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The same on another batch, and the penalty on alpha."""
        if self.options.unroll_clip_valid and self.options.unroll_clip is not None:
            params = clip_backward(params, self.options.unroll_clip)
        loss, penalty = self.inner_loss(meta, params, batch), self.penalty and self.penalty(meta)
        return loss if penalty is None else loss + penalty

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:  # noqa: ARG002
        """The unrolled step; with its gradient clipped if `unroll_clip` is set."""
        if self.options.unroll_clip is not None:
            grads = clip_step(grads, self.options.unroll_clip, self.options.unroll_clip_derivative)
        return sgd(inner.params, inner.slots, grads, self.learning_rate, self.momentum, self.weight_decay)

    def score(self, meta: Tree, params: Tree, batch: Batch) -> Output:
        """The network's output on a batch under weights and alpha, in the mode the network is in.

        The batch's key is the noise of every pass over it (common random numbers); `noise=redrawn` gives
        each pass its own, as in the authors' code.
        """
        again = (self.passes,) if self.options.noise == "redrawn" else ()
        self.passes += 1
        with seeded(*batch.key, *again), self.machine.autocast():
            arguments = (batch.x, self.hidden.get(batch.key) or None)
            output = functional_call(self.network, params, arguments, {"mixture": self.mix(meta)})
        if output.state:
            self.states[batch.key] = detach(output.state)
        return output._replace(logits=full(output.logits))
