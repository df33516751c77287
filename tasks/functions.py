"""Families of functions of a point theta: problems for optimizers, with known answers."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from tasks.function_config import FunctionOptions, QuadraticOptions, RastriginOptions, RosenbrockOptions

SPLITS = ("train", "valid", "test", "search_train", "search_valid")
Points = Float[Tensor, "batch dimension"]
Values = Float[Tensor, " batch"]


class FunctionTask(Task):
    """A family of functions, given by how its constants are drawn and how a point is scored.

    Every split is an endless stream of fresh functions, keyed by (seed, name, split, index), so that splits
    share none. `Batch.x` and `Batch.y` hold the constants, the output is a point theta [batch dimension] for
    each function, and the loss is the mean over functions.
    """

    formula: str

    def __init__(
        self,
        options: FunctionOptions,
        seed: int,
        data_dir: Path,  # noqa: ARG002
        download: bool,  # noqa: ARG002
        device: torch.device,
    ) -> None:
        self.options, self.seed, self.device = options, seed, device
        self.spec = TaskSpec(
            name=options.name,
            kind="function",
            input_shape=(options.dimension,),
            outputs=options.dimension,
            sizes=dict.fromkeys(SPLITS, options.evaluated),
            metric="loss",
            source=self.formula,
            licence="none needed",
            provenance="drawn from the run's seed",
            digest=hashlib.sha256(f"{self.formula} {options}".encode()).hexdigest(),
        )

    @abstractmethod
    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        """The constants of one batch of functions, on the CPU."""

    @abstractmethod
    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        """Each function at its point."""

    def batch(self, split: Split, index: int) -> Batch:
        key = (self.seed, self.options.name, split, index)
        x, y = self.draw(generator(*key))
        return Batch(x.to(self.device), y.to(self.device), key)

    def batches(self, split: Split) -> int:
        return math.ceil(self.spec.sizes[split] / self.options.batch)

    def sweep(self, split: Split) -> Iterator[Batch]:
        for index in range(self.batches(split)):
            x, y, key = self.batch(split, index)
            count = min(self.options.batch, self.options.evaluated - index * self.options.batch)
            yield Batch(x[:count], y[:count], key)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return self.values(output, batch.x, batch.y).mean()

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


class Quadratic(FunctionTask):
    """||W theta - y||^2, all entries of W and y i.i.d. (Andrychowicz et al. 2016, section 3.1).

    Gaussian in the paper, uniform on [0, 1) in its code. x = W [batch d d], y [batch d].
    """

    formula = "||W theta - y||^2"

    def __init__(self, options: QuadraticOptions, **context: Any) -> None:
        super().__init__(options, **context)
        self.sample = torch.randn if options.distribution == "gaussian" else torch.rand

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        batch, d = self.options.batch, self.options.dimension
        return self.sample(batch, d, d, generator=rng), self.sample(batch, d, generator=rng)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        return ((x @ theta.unsqueeze(-1)).squeeze(-1) - y).square().sum(-1)


class Rosenbrock(FunctionTask):
    """sum_i y (u_{i+1} - u_i^2)^2 + (1 - u_i)^2 with u = theta - x (Rosenbrock 1960, shifted).

    x [batch d] standard normal; y [batch] log-uniform from 1 to `steepness`. Minimum 0 at u = 1.
    """

    formula = "sum_i b (u_{i+1} - u_i^2)^2 + (1 - u_i)^2, u = theta - shift"

    def __init__(self, options: RosenbrockOptions, **context: Any) -> None:
        super().__init__(options, **context)
        self.steepness = options.steepness

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        batch, d = self.options.batch, self.options.dimension
        shift = torch.randn(batch, d, generator=rng)
        return shift, self.steepness ** torch.rand(batch, generator=rng)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        u = theta - x
        walls = (u[..., 1:] - u[..., :-1].square()).square().sum(-1)
        return y * walls + (1 - u[..., :-1]).square().sum(-1)


class Rastrigin(FunctionTask):
    """sum_i u_i^2 + A (1 - cos 2 pi u_i) with u = theta - x (Rastrigin 1974, shifted).

    x [batch d] standard normal; y [batch] the height A of the ripples. Minimum 0 at u = 0.
    """

    formula = "sum_i u_i^2 + A (1 - cos 2 pi u_i), u = theta - shift"

    def __init__(self, options: RastriginOptions, **context: Any) -> None:
        super().__init__(options, **context)
        self.ripple = options.ripple

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        batch, d = self.options.batch, self.options.dimension
        return torch.randn(batch, d, generator=rng), torch.full((batch,), self.ripple)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        u = theta - x
        return u.square().sum(-1) + y * (1 - torch.cos(2 * math.pi * u)).sum(-1)
