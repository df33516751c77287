"""Functions drawn from a Gaussian process, made up at the points where they are asked."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from metalearn.registry import UserError
from metalearn.task import Batch
from metalearn.tree import Tree
from tasks.function_config import GaussianProcessOptions
from tasks.functions import FunctionTask, Points, Values

TINY = 1e-30  # squared distance below which a point is the same one: a root has no derivative at 0


class GaussianProcess(FunctionTask):
    """Draws from a prior of mean 0 with fixed hyper-parameters (Chen et al. 2017, section 2.2).

    Value number t at x is mean + deviation * noise number t, mean and deviation those of the process given
    all values before (chain rule): the joint law of any points that are asked is the prior's, whatever their
    order, and a trajectory is a differentiable function of its points. x [batch queries] is the noise.

    A lone theta is scored on the function whose value at the middle of the box was drawn before, by y
    [batch]: the very first value that is asked of a function does not depend on where.

    State: `noise` [batch queries], `points` [batch t dimension], `inverse` [batch t t], the inverse of the
    Cholesky factor of the values' covariance, to which a query adds a row in O(t^2). All in float64.
    """

    formula = "f ~ GP(0, k)"

    def __init__(self, options: GaussianProcessOptions, **context: Any) -> None:
        super().__init__(options, **context)
        self.prior, self.most_queries = options, options.queries

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        shape = (self.prior.batch, self.prior.queries)
        noise = torch.randn(shape, generator=rng, dtype=torch.float64)
        return noise, torch.randn(shape[0], generator=rng, dtype=torch.float64)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        state = self.begin(Batch(torch.cat([y.unsqueeze(1), x], 1), y, ()))
        _, state = self.query(state, torch.full_like(theta, 0.5))
        return self.query(state, theta)[0]

    def begin(self, batch: Batch) -> Tree:
        """Functions of which nothing is known yet."""
        count = len(batch.x)
        return {
            "noise": batch.x,
            "points": batch.x.new_zeros(count, 0, self.prior.dimension),
            "inverse": batch.x.new_zeros(count, 0, 0),
        }

    def query(self, state: Tree, x: Points) -> tuple[Values, Tree]:
        """Draw each function's value at its point."""
        noise, points, inverse = state["noise"], state["points"], state["inverse"]
        asked, x = points.shape[1], x.double()
        if asked >= noise.shape[1]:
            raise UserError(f"task.queries: got {self.prior.queries}, but more was asked; raise task.queries")
        weights, deviation = self._conditional(state, x.unsqueeze(1))
        weights, deviation = weights.squeeze(2), deviation.squeeze(1)
        value = (weights * noise[:, :asked]).sum(1) + deviation * noise[:, asked]
        row = torch.cat([-(weights.unsqueeze(1) @ inverse).squeeze(1), torch.ones_like(value[:, None])], 1)
        row = row / deviation.unsqueeze(1)
        padded = torch.cat([inverse, torch.zeros_like(points[:, :, :1])], 2)
        grown = {
            "points": torch.cat([points, x.unsqueeze(1)], 1),
            "inverse": torch.cat([padded, row[:, None]], 1),
        }
        return value, state | grown

    def predict(
        self, state: Tree, x: Float[Tensor, "batch points dimension"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points"]]:
        """Mean and deviation of the values that `query` would draw, each point by itself."""
        weights, deviation = self._conditional(state, x.double())
        known = state["noise"][:, : state["points"].shape[1], None]
        return (weights * known).sum(1), deviation

    def covariance(
        self, a: Float[Tensor, "batch left dimension"], b: Float[Tensor, "batch right dimension"]
    ) -> Float[Tensor, "batch left right"]:
        """The kernel (Rasmussen and Williams 2006, eq. 4.9 and 4.17)."""
        square = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(3) / self.prior.length_scale**2
        if self.prior.kernel == "rbf":
            return self.prior.variance * torch.exp(-square / 2)
        distance = math.sqrt(5) * square.clamp_min(TINY).sqrt()
        return self.prior.variance * (1 + distance + distance.square() / 3) * torch.exp(-distance)

    def _conditional(
        self, state: Tree, x: Float[Tensor, "batch points dimension"]
    ) -> tuple[Float[Tensor, "batch asked points"], Float[Tensor, "batch points"]]:
        """The covariance with what was asked in units of its noise, and the deviation that is left.

        Its square is never below `jitter` but for rounding, which the bound takes away.
        """
        weights = state["inverse"] @ self.covariance(state["points"], x)
        left = self.prior.variance + self.prior.jitter - weights.square().sum(1)
        return weights, left.clamp_min(self.prior.jitter).sqrt()
