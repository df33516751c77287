"""What learned optimizers optimize: a task and a small network as a distribution of problems."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from metalearn.hypergradient.guard import check_module
from metalearn.learned_optimizers.config import OptimizeeOptions
from metalearn.method import Context
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Split
from metalearn.tree import Tree

Pair = tuple[Tensor, Tensor]  # inputs and targets
KEPT_BYTES = 2**28  # of minibatches of evaluation problems, beyond which they are drawn anew each time


class Optimizee:
    """Problems (split, index), each over one vector theta of all coordinates in a fixed order.

    A problem starts at Gaussian parameters. Of a supervised task it trains the network on minibatches of its
    split, a new one each step, and scores it on them: training problems see only training data, test
    problems only test data. Of a family of functions it is one batch of them, each with a point of its own;
    its loss is their sum, so that a coordinate's gradient is that of its own function (the paper's form; the
    authors' code divides by the batch). Reported losses are means over functions.
    """

    def __init__(self, options: OptimizeeOptions, context: Context) -> None:
        if context.task.spec.kind == "few_shot":
            raise UserError(
                f"task {context.task.spec.name}: its batches are tasks to adapt to, not examples; "
                "choose method=maml, or a task of labelled examples or functions"
            )
        self.options, self.task, self.seed = options, context.task, context.seed
        self.device = context.machine.device
        self.network = context.network()
        check_module(self.network)
        self.is_function = context.task.spec.kind == "function"
        self.functions = len(context.task.batch("train", 0).x) if self.is_function else 1
        front = (self.functions,) if self.is_function else ()
        self.shapes = {name: front + leaf.shape for name, leaf in self.network.named_parameters()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.coordinates = sum(self.sizes)
        self._kept: dict[tuple[Split, int], list[Pair]] = {}
        self._probe()

    def _probe(self) -> None:
        """Refuse a network that is no pure function of parameters and batch, before anything has trained."""
        batches = [self.task.batch("train", index) for index in range(2)]
        pair = torch.stack([batch.x for batch in batches]), torch.stack([batch.y for batch in batches])
        theta = torch.stack([self.start(self.stream("train", problem)) for problem in range(2)])
        try:
            self.losses_and_gradients(theta, pair)
        except RuntimeError as error:
            raise UserError(
                f"network {type(self.network).__name__}: cannot be optimized in batches of problems, for it "
                "has dropout, running statistics or an operation without a batched form; choose mlp or "
                f"convnet ({str(error).splitlines()[0]})"
            ) from error

    def stream(self, split: Split, problem: int) -> torch.Generator:
        """The randomness of a problem's start."""
        return generator(self.seed, "optimizee", split, problem)

    def start(self, rng: torch.Generator) -> Float[Tensor, " coordinates"]:
        """Initial parameters."""
        return self.options.deviation * torch.randn(self.coordinates, generator=rng).to(self.device)

    def batches(self, split: Split, problem: int, first: int, count: int) -> list[Batch]:
        """What a problem is scored on at `count` steps from `first`, of 0 to `horizon`.

        No two problems share a minibatch's index; functions stay the same for the whole run.
        """
        if self.is_function:
            return [self.task.batch(split, problem)] * count
        start = problem * (self.options.horizon + 1) + first
        return [self.task.batch(split, index) for index in range(start, start + count)]

    def feed(self, split: Split, problems: int) -> Iterator[Pair]:
        """Inputs and targets [problems, ...] of the first problems of a split, for step 0 to `horizon`.

        Kept for the next call if they are small: tuning asks for the same ones again and again.
        """
        if (split, problems) in self._kept:
            yield from self._kept[split, problems]
            return
        pairs: list[Pair] = []
        pair = self._pair(split, problems, 0)
        small = pair[0].nbytes * self.options.horizon <= KEPT_BYTES
        for step in range(self.options.horizon + 1):
            if step and not self.is_function:
                pair = self._pair(split, problems, step)
            if small or self.is_function:
                pairs.append(pair)
            yield pair
        if pairs:
            self._kept[split, problems] = pairs

    def _pair(self, split: Split, problems: int, step: int) -> Pair:
        found = [self.batches(split, problem, step, 1)[0] for problem in range(problems)]
        return torch.stack([batch.x for batch in found]), torch.stack([batch.y for batch in found])

    def loss(self, theta: Float[Tensor, " coordinates"], batch: Batch) -> Float[Tensor, ""]:
        """The problem's loss at `theta`, summed over functions."""
        output = functional_call(self.network, self.unflatten(theta), (batch.x,))
        return self.functions * self.task.loss(output.logits, batch)

    def unflatten(self, theta: Float[Tensor, " coordinates"]) -> Tree:
        """The network's parameters by name, as views of `theta`."""
        parts = theta.split(self.sizes)
        return {
            name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def losses_and_gradients(
        self, theta: Float[Tensor, "problems coordinates"], pair: Pair
    ) -> tuple[Float[Tensor, " problems"], Float[Tensor, "problems coordinates"]]:
        """Losses and gradients of several problems in one pass, outside any graph."""

        def loss(point: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(point, Batch(x, y, ()))

        grads, losses = vmap(grad_and_value(loss))(theta, *pair)
        return losses, grads
