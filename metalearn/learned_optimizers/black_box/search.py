"""A controller at work on a batch of functions, one query after another or several at a time."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from metalearn.learned_optimizers.black_box.config import BlackBoxOptimizerOptions
from metalearn.learned_optimizers.black_box.controller import Controller, Lstm
from metalearn.learned_optimizers.black_box.dnc import Dnc
from metalearn.learned_optimizers.black_box.losses import expected_improvement
from metalearn.machine import Machine, full
from metalearn.rng import generator
from metalearn.task import Batch, Predicted, Queried
from metalearn.tree import Tree


class Trajectory(NamedTuple):
    """What was asked and answered, in order of completion."""

    points: Float[Tensor, "time batch dimension"]
    values: Float[Tensor, "time batch"]
    improvements: Float[Tensor, "time batch"] | None  # expected, when a query was made; in that order


class UnderWay(NamedTuple):
    """Queries that workers are at, and when they will be done."""

    points: Float[Tensor, "batch worker dimension"]
    done: Float[Tensor, "batch worker"]

    def first(self) -> tuple[Float[Tensor, "batch dimension"], Bool[Tensor, "batch worker"]]:
        """The point that is done first, and which worker that is."""
        worker = F.one_hot(self.done.argmin(1), self.done.shape[1]).bool()
        chosen = worker.unsqueeze(2).to(self.points.dtype)
        return (chosen * self.points).sum(1), worker

    def next(self, worker: Tensor, point: Tensor | None, runtime: Tensor | None) -> "UnderWay":
        """The worker that is done takes up `point`, or rests from now on."""
        if point is None or runtime is None:
            return self._replace(done=self.done.masked_fill(worker, torch.inf))
        return UnderWay(
            torch.where(worker.unsqueeze(2), point.unsqueeze(1), self.points),
            torch.where(worker, self.done + runtime.unsqueeze(1), self.done),
        )


class Search:
    """x_t = squash(controller(x_{t-1}, y_{t-1})), zeros before the first answer (Chen et al. 2017, eq. 1).

    Several workers (section 2.3, eq. 6): the first queries are made with nothing known; then whichever is
    done first is told to the controller, which answers with that worker's next query. A flag among the inputs
    says whether there was an answer. A function is asked when a worker is done, so that what is known of it
    never runs ahead of what the controller has been told.
    """

    def __init__(
        self, options: BlackBoxOptimizerOptions, task: Queried, controller: Controller, machine: Machine
    ) -> None:
        self.options, self.task, self.controller = options, task, controller
        self.step = machine.compile(controller.apply)

    def run(self, meta: Tree, batch: Batch, horizon: int, expected: bool = False) -> Trajectory:
        """`horizon` queries of each function; `expected`: with the expected improvement of each."""
        like, workers = next(iter(meta.values())), min(self.options.workers, horizon)
        asking = _Asking(self, meta, batch, like, expected)
        runtimes = self.runtimes(batch, horizon)
        first = torch.stack([asking.propose(None) for _ in range(workers)], 1)
        under_way, asked = UnderWay(first, runtimes[:, :workers]), []
        for made in range(workers, horizon + workers):
            point, worker = under_way.first()
            value = asking.answer(point)
            asked.append((point, value))
            last = made >= horizon
            proposed = None if last else asking.propose((point, value))
            under_way = under_way.next(worker, proposed, None if last else runtimes[:, made])
        points, values = (torch.stack(part) for part in zip(*asked, strict=True))
        return Trajectory(points, values, torch.stack(asking.improvements) if expected else None)

    def runtimes(self, batch: Batch, horizon: int) -> Float[Tensor, "batch time"]:
        """How long each query takes: uniform on 1 -+ s, a function of the batch's key."""
        spread, rng = self.options.runtime_spread, generator(*batch.key, "runtimes")
        drawn = torch.rand(len(batch.x), horizon, generator=rng, dtype=torch.float64)
        return (1 + spread * (2 * drawn - 1)).to(batch.x.device)

    def squash(self, output: Float[Tensor, "batch dimension"]) -> Float[Tensor, "batch dimension"]:
        """Into the unit box; an output of 0 is its middle."""
        return torch.sigmoid(output) if self.options.squash == "sigmoid" else (output + 0.5).clamp(0, 1)


class _Asking:
    """One run of a search under way."""

    def __init__(self, search: Search, meta: Tree, batch: Batch, like: Tensor, expected: bool) -> None:
        self.search, self.meta, self.like, self.expected = search, meta, like, expected
        self.functions = search.task.begin(batch)
        self.state = search.controller.state(len(batch.x), like)
        self.dummy = like.new_zeros(len(batch.x), search.controller.inputs)
        self.best: Tensor | None = None
        self.improvements: list[Tensor] = []

    def propose(self, observed: tuple[Tensor, Tensor] | None) -> Float[Tensor, "batch dimension"]:
        """The next query, once told the last answer if there is one."""
        features = self.dummy if observed is None else self._features(*observed)
        output, self.state = self.search.step(self.meta, features, self.state)
        point = self.search.squash(full(output))
        if self.expected:
            self.improvements.append(self._improvement(point))
        return point

    def answer(self, point: Float[Tensor, "batch dimension"]) -> Float[Tensor, " batch"]:
        """Each function's value."""
        value, self.functions = self.search.task.query(self.functions, point)
        self.best = value if self.best is None else torch.minimum(self.best, value)
        return value

    def _features(self, point: Tensor, value: Tensor) -> Float[Tensor, "batch inputs"]:
        parts = [point, value.unsqueeze(1).to(self.like.dtype)]
        if self.search.options.workers > 1:
            parts.append(torch.ones_like(point[:, :1]))
        return torch.cat(parts, 1)

    def _improvement(self, point: Tensor) -> Float[Tensor, " batch"]:
        """Zero while there is nothing to improve on."""
        if self.best is None:
            return torch.zeros_like(point[:, 0], dtype=torch.float64)
        assert isinstance(self.search.task, Predicted)
        mean, deviation = self.search.task.predict(self.functions, point.unsqueeze(1))
        return expected_improvement(mean.squeeze(1), deviation.squeeze(1), self.best)


def inputs(options: BlackBoxOptimizerOptions, dimension: int) -> int:
    """A point, its value and, of several workers, whether there was any."""
    return dimension + 1 + (options.workers > 1)


def make_controller(options: BlackBoxOptimizerOptions, dimension: int) -> Controller:
    """The configured controller of functions of so many dimensions."""
    seen = inputs(options, dimension)
    if options.controller == "lstm":
        return Lstm(seen, dimension, options.hidden, options.forget_bias)
    lstm = Lstm(seen + options.read_heads * options.width, dimension, options.hidden, options.forget_bias)
    return Dnc(lstm, options.slots, options.width, options.read_heads)
