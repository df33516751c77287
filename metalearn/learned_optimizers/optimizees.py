"""What learned optimizers optimize: a task and a small network as a distribution of problems."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from metalearn.hypergradient.guard import check_module
from metalearn.learned_optimizers.config import OptimizeeOptions
from metalearn.learned_optimizers.layout import Layout
from metalearn.method import Context
from metalearn.network import Network
from metalearn.registry import UserError, build
from metalearn.rng import generator
from metalearn.task import Batch, Split, Task, TaskSpec

KEPT_BYTES = 2**28  # of minibatches of evaluation problems, beyond which they are drawn anew each time
Theta = Float[Tensor, "problems coordinates"]


class Optimizee:
    """Numbered problems of every split, each over one vector of coordinates in a fixed order.

    A problem starts at Gaussian parameters. Of a supervised task it trains the network on minibatches of its
    split, a new one each step, and scores it on them: training problems see only training data, test problems
    only test data. Of a family of functions one number stands for a whole batch of them, each a problem with
    a point of its own: `functions` rows of theta.

    `share` multiplies gradients: 1, or one over the batch of functions (`function_gradients`). Its number 0
    is the number `first` of its kind, so that several optimizees on one task share neither starts nor data.
    """

    kept_bytes = KEPT_BYTES
    units: Theta | None = None  # of the variables: the network's parameters are these times theta; None: 1

    def __init__(
        self, options: OptimizeeOptions, task: Task, network: Network, context: Context, first: int = 0
    ) -> None:
        if task.spec.kind == "few_shot":
            raise UserError(
                f"task {task.spec.name}: its batches are tasks to adapt to, not examples; "
                "choose method=maml, or a task of labelled examples or functions"
            )
        check_module(network)
        self.options, self.task, self.network = options, task, network
        self.seed, self.first = context.seed, first
        self.device = context.machine.device
        self.is_function = task.spec.kind == "function"
        self.functions = len(task.batch("train", 0).x) if self.is_function else 1
        self.share = 1 / self.functions if options.function_gradients == "mean" else 1.0
        shapes = {name: tuple(leaf.shape) for name, leaf in network.named_parameters()}
        self.layout = Layout(shapes, self.device)
        self._kept: dict[tuple[Split, int], list[Batch]] = {}
        self._probe()

    def _probe(self) -> None:
        """Refuse a network that is no pure function of parameters and batch, before anything has trained."""
        try:
            self.losses_and_gradients(self.start("train", (0, 1)), self.batches("train", (0, 1), 0, 1)[0])
        except RuntimeError as error:
            raise UserError(
                f"network {type(self.network).__name__}: cannot be optimized in batches of problems, for it "
                "has dropout, running statistics or an operation without a batched form; turn dropout off (a "
                "text model's: network.NAME_keep=1), or choose mlp or convnet "
                f"({str(error).splitlines()[0]})"
            ) from error

    def start(self, split: Split, numbers: Sequence[int]) -> Theta:
        """Initial parameters."""
        shape = (self.functions, self.layout.coordinates)
        drawn = [
            torch.randn(shape[0] * shape[1], generator=generator(self.seed, "optimizee", split, number))
            for number in self._own(numbers)
        ]
        theta = self.options.deviation * torch.cat(drawn).view(-1, shape[1]).to(self.device)
        return theta if self.units is None else theta / self.units

    def batches(self, split: Split, numbers: Sequence[int], first: int, count: int) -> list[Batch]:
        """What the problems are scored on at `count` steps from `first`, of 0 to `horizon`.

        x [problems, batch, ...] of a supervised task; [problems, ...] of functions, which stay the same for
        the whole run. No two problems share a minibatch's index.
        """
        if self.is_function:
            drawn = [self.task.batch(split, number) for number in self._own(numbers)]
            return [_joined(drawn, torch.cat)] * count
        run = self.options.horizon + 1
        return [
            _joined(
                [self.task.batch(split, number * run + step) for number in self._own(numbers)], torch.stack
            )
            for step in range(first, first + count)
        ]

    def _own(self, numbers: Sequence[int]) -> list[int]:
        return [self.first + number for number in numbers]

    def feed(self, split: Split, problems: int) -> Iterator[Batch]:
        """The batches of the first numbers of a split, for step 0 to `horizon`.

        Kept for the next call if they are small: tuning asks for the same ones again and again.
        """
        if (split, problems) in self._kept:
            yield from self._kept[split, problems]
            return
        kept: list[Batch] = []
        batch = self.batches(split, range(problems), 0, 1)[0]
        small = self.is_function or batch.x.nbytes * self.options.horizon <= self.kept_bytes
        for step in range(self.options.horizon + 1):
            if step and not self.is_function:
                batch = self.batches(split, range(problems), step, 1)[0]
            if small:
                kept.append(batch)
            yield batch
        if small:
            self._kept[split, problems] = kept

    def total(self, theta: Theta, batch: Batch) -> Float[Tensor, ""]:
        """`share` times the sum of the problems' losses, twice differentiable."""
        if self.is_function:
            return len(theta) * self.share * self._loss(self._parameters(theta), batch)
        return self.losses(theta, batch).sum()

    def losses(self, theta: Theta, batch: Batch) -> Float[Tensor, " problems"]:
        """Each problem's loss, one after the other, twice differentiable."""
        parts = zip(self._parameters(theta), *self._parts(batch), strict=True)
        return torch.stack([self._loss(row, Batch(x, y, batch.key)) for row, x, y in parts])

    def total_and_gradient(self, theta: Theta, batch: Batch) -> tuple[Float[Tensor, ""], Theta]:
        """`total` and its gradient, in one pass outside any graph."""
        if not self.is_function and len(theta) > 1:
            losses, grads = self.losses_and_gradients(theta, batch)
            return self.share * losses.sum(), grads
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            total = self.total(leaf, batch)
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    def losses_and_gradients(self, theta: Theta, batch: Batch) -> tuple[Float[Tensor, " problems"], Theta]:
        """Each problem's loss, and `share` times its gradient, in one pass outside any graph."""
        if len(theta) == 1:
            total, grad = self.total_and_gradient(theta, batch)
            return total.view(1) / self.share, grad
        at = self._parameters(theta.detach())
        grads, losses = vmap(grad_and_value(self._loss_of_one))(at, *self._parts(batch))
        return losses, self._seen(grads)

    def of_particles(
        self, theta: Float[Tensor, "particles problems coordinates"], batch: Batch
    ) -> tuple[Float[Tensor, "particles problems"], Float[Tensor, "particles problems coordinates"]]:
        """`losses_and_gradients` of many points of each problem, which see the same batch."""
        of_problems = vmap(grad_and_value(self._loss_of_one))
        at = self._parameters(theta.detach())
        grads, losses = vmap(of_problems, (0, None, None))(at, *self._parts(batch))
        return losses, self._seen(grads)

    def in_units(self, units: Theta) -> "Optimizee":
        """The same for a few problems, each coordinate counted in units of its own, on the same network."""
        counted = copy.copy(self)
        counted.units, counted._kept = units, {}
        return counted

    def _parameters(self, theta: Tensor) -> Tensor:
        return theta if self.units is None else self.units * theta

    def _seen(self, grads: Tensor) -> Tensor:
        """Gradients by theta, `share` times, from those by the parameters."""
        grads = self.share * grads if self.share != 1 else grads
        return grads if self.units is None else self.units * grads

    def _parts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """x and y with the problems in front, each a batch of its own."""
        return (batch.x.unsqueeze(1), batch.y.unsqueeze(1)) if self.is_function else (batch.x, batch.y)

    def _loss_of_one(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._loss(theta, Batch(x, y, ()))

    def _loss(self, theta: Float[Tensor, "... coordinates"], batch: Batch) -> Float[Tensor, ""]:
        output = functional_call(self.network, self.layout.unflatten(theta), (batch.x,))
        return self.task.loss(output.logits, batch)


class Family(ABC):
    """Where the problems of meta-training and of evaluation come from."""

    spec: TaskSpec  # of all that is learned on
    coordinates: int | None = None  # of each problem; None: they differ

    @abstractmethod
    def draw(self, split: Split, run: int) -> Optimizee:
        """What run number `run` optimizes; its own numbers are its problems."""

    @abstractmethod
    def evaluation(self, split: Split) -> list[tuple[Optimizee, int]]:
        """What an optimizer is judged on: optimizees, and how many of each one's first numbers."""


class Single(Family):
    """The configured network on the configured task."""

    def __init__(self, options: OptimizeeOptions, context: Context) -> None:
        self.options = options
        self.optimizee = Optimizee(options, context.task, context.network(), context)
        self.spec, self.coordinates = context.task.spec, self.optimizee.layout.coordinates

    def draw(self, split: Split, run: int) -> Optimizee:  # noqa: ARG002
        """Always the same."""
        return self.optimizee

    def evaluation(self, split: Split) -> list[tuple[Optimizee, int]]:
        """It, with all problems."""
        count = self.options.test_problems if split == "test" else self.options.valid_problems
        return [(self.optimizee, count)]


def family(options: OptimizeeOptions, context: Context) -> Family:
    """The configured mixture, else the configured network on the configured task. Raises UserError."""
    if context.mixture is None:
        return Single(options, context)
    return build("mixture", context.mixture, optimizee=options, context=context)


def _joined(batches: Sequence[Batch], join: Callable[[list[Tensor]], Tensor]) -> Batch:
    keys = tuple(part for batch in batches for part in batch.key)
    return Batch(join([batch.x for batch in batches]), join([batch.y for batch in batches]), keys)
