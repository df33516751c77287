"""Test functions of global optimization, on the unit box and moved about from instance to instance."""

import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from metalearn.registry import UserError
from metalearn.task import Batch
from metalearn.tree import Tree
from tasks.function_config import BenchmarkOptions
from tasks.functions import FunctionTask, Points, Values


class Benchmark(FunctionTask):
    """(raw(u) - mean) / deviation at u = A (x - 1/2) + 1/2 + s, where u = 0 and 1 are the domain's ends.

    A permutes, flips and scales the dimensions and s shifts them (Chen et al. 2017, section 3.2; a factor and
    a shift for each dimension is our reading). The formula is taken beyond its domain where u leaves it. Mean
    and deviation are those of the raw function over its domain, by 2^20 points of a Sobol sequence. Branin
    comes to -1.05 at its minimum, as in figure 4 there. x [batch d d] is A, y [batch d] is s.
    """

    low: tuple[float, ...]  # of the domain, by dimension
    high: tuple[float, ...]
    mean: float
    deviation: float
    most_queries = None

    def __init__(self, options: BenchmarkOptions, **context: Any) -> None:
        if len(options.scaling) != 2 or options.scaling[0] > options.scaling[1]:
            raise UserError(f"task.scaling: got {options.scaling}, must be the lowest factor and the highest")
        super().__init__(options, **context)
        self.instances = options

    @abstractmethod
    def raw(self, z: Points) -> Values:
        """The function as published, on its own domain."""

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        options, shape = self.instances, (self.instances.batch, self.instances.dimension)
        uniform = [torch.rand(shape, generator=rng, dtype=torch.float64) for _ in range(4)]
        low, high = options.scaling
        sign = torch.where(uniform[1] < 0.5, -1.0, 1.0) if options.flip else torch.ones_like(uniform[1])
        order = uniform[2].argsort(1) if options.permute else torch.arange(shape[1]).expand(shape)
        matrix = torch.eye(shape[1], dtype=torch.float64)[order]
        factor = (low + (high - low) * uniform[0]) * sign
        return factor.unsqueeze(2) * matrix, options.translation * (2 * uniform[3] - 1)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        place = (x @ (theta.double() - 0.5).unsqueeze(2)).squeeze(2) + 0.5 + y
        low, high = place.new_tensor(self.low), place.new_tensor(self.high)
        return (self.raw(low + (high - low) * place) - self.mean) / self.deviation

    def begin(self, batch: Batch) -> Tree:
        """The instances' constants."""
        return {"x": batch.x, "y": batch.y}

    def query(self, state: Tree, x: Points) -> tuple[Values, Tree]:
        """Each instance at its point; it stays as it is."""
        return self.values(x, state["x"], state["y"]), state


class Branin(Benchmark):
    """Minimum 0.397887 at (-pi, 12.275), (pi, 2.275) and (9.42478, 2.475) (Branin 1972)."""

    formula = "(b - 5.1 a^2 / (4 pi^2) + 5 a / pi - 6)^2 + 10 (1 - 1 / (8 pi)) cos a + 10"
    low, high = (-5.0, 0.0), (10.0, 15.0)
    mean, deviation = 54.30719828, 51.25121769

    def raw(self, z: Points) -> Values:
        a, b = z.unbind(-1)
        valley = b - 5.1 * a.square() / (4 * math.pi**2) + 5 * a / math.pi - 6
        return valley.square() + 10 * (1 - 1 / (8 * math.pi)) * torch.cos(a) + 10


class GoldsteinPrice(Benchmark):
    """Minimum 3 at (0, -1) (Goldstein and Price 1971)."""

    formula = "product of two quartics in (a, b), at least 3"
    low, high = (-2.0, -2.0), (2.0, 2.0)
    mean, deviation = 53315.886, 124797.19

    def raw(self, z: Points) -> Values:
        a, b = z.unbind(-1)
        first = 19 - 14 * a + 3 * a**2 - 14 * b + 6 * a * b + 3 * b**2
        second = 18 - 32 * a + 12 * a**2 + 48 * b - 36 * a * b + 27 * b**2
        return (1 + (a + b + 1) ** 2 * first) * (30 + (2 * a - 3 * b) ** 2 * second)


def _bumps(
    z: Points, steepness: tuple[tuple[float, ...], ...], centres: tuple[tuple[int, ...], ...]
) -> Values:
    """-sum_i h_i exp(-sum_j steepness_ij (z_j - centre_ij)^2), centres in units of 1e-4."""
    heights = z.new_tensor((1.0, 1.2, 3.0, 3.2))
    offset: Float[Tensor, "batch bump d"] = z.unsqueeze(-2) - 1e-4 * z.new_tensor(centres)
    return -(heights * torch.exp(-(z.new_tensor(steepness) * offset.square()).sum(-1))).sum(-1)


class Hartmann3(Benchmark):
    """Minimum -3.86278 at (0.114614, 0.555649, 0.852547) (Hartmann 1973)."""

    formula = "four negative Gaussian bumps in 3 dimensions"
    low, high = (0.0,) * 3, (1.0,) * 3
    mean, deviation = -0.94353374, 0.95558627
    steepness = ((3.0, 10.0, 30.0), (0.1, 10.0, 35.0), (3.0, 10.0, 30.0), (0.1, 10.0, 35.0))
    centres = ((3689, 1170, 2673), (4699, 4387, 7470), (1091, 8732, 5547), (381, 5743, 8828))

    def raw(self, z: Points) -> Values:
        return _bumps(z, self.steepness, self.centres)


class Hartmann6(Benchmark):
    """Minimum -3.32237 at (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573) (Hartmann 1973)."""

    formula = "four negative Gaussian bumps in 6 dimensions"
    low, high = (0.0,) * 6, (1.0,) * 6
    mean, deviation = -0.2589274, 0.3848263
    steepness = (
        (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
        (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
        (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
        (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
    )
    centres = (
        (1312, 1696, 5569, 124, 8283, 5886),
        (2329, 4135, 8307, 3736, 1004, 9991),
        (2348, 1451, 3522, 2883, 3047, 6650),
        (4047, 8828, 8732, 5743, 1091, 381),
    )

    def raw(self, z: Points) -> Values:
        return _bumps(z, self.steepness, self.centres)
