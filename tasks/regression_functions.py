"""Convex problems of statistics as families of functions: logistic regression, the lasso."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tasks.function_config import LassoOptions, LogisticRegressionOptions
from tasks.functions import FunctionTask, Points, Values


class LogisticRegression(FunctionTask):
    """mean_i log(1 + exp(-y_i x_i theta)) + l2/2 |weights|^2 on a random data set; convex.

    theta is the weights and, if there is one, the bias behind them. A label is the side of a standard normal
    hyperplane that its example lies on, after normal noise. x [batch examples dimension], of which the last
    column is 1 for the bias; y [batch examples] of -1 and 1.
    """

    formula = "mean_i log(1 + exp(-y_i x_i theta)) + l2/2 |weights|^2"

    def __init__(self, options: LogisticRegressionOptions, **context: Any) -> None:
        super().__init__(options, **context)
        self.bias, self.examples = int(options.bias), options.examples
        self.noise, self.l2 = options.noise, options.l2

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        batch, d = self.options.batch, self.options.dimension
        x = torch.randn(batch, self.examples, d, generator=rng)
        plane = torch.randn(batch, d, 1, generator=rng)
        if self.bias:
            x[..., -1] = 1.0
        noise = self.noise * torch.randn(batch, self.examples, generator=rng)
        above = (x @ plane).squeeze(-1) / d**0.5 + noise > 0
        return x, torch.where(above, 1.0, -1.0)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        margins = y * (x @ theta.unsqueeze(-1)).squeeze(-1)
        weights = theta[..., : theta.shape[-1] - self.bias]
        return F.softplus(-margins).mean(-1) + self.l2 / 2 * weights.square().sum(-1)


class Lasso(FunctionTask):
    """||A theta - b||^2 / 2 + penalty |theta|_1, entries of A and b standard normal (Tibshirani 1996).

    At theta_i = 0, where |theta_i| has a corner, the subgradient 0 is taken. x = A [batch rows d], y = b
    [batch rows].
    """

    formula = "||A theta - b||^2 / 2 + penalty |theta|_1"

    def __init__(self, options: LassoOptions, **context: Any) -> None:
        super().__init__(options, **context)
        self.rows, self.penalty = options.rows, options.penalty

    def draw(self, rng: Generator) -> tuple[Tensor, Tensor]:
        batch, d = self.options.batch, self.options.dimension
        return torch.randn(batch, self.rows, d, generator=rng), torch.randn(batch, self.rows, generator=rng)

    def values(self, theta: Points, x: Tensor, y: Tensor) -> Values:
        residual = (x @ theta.unsqueeze(-1)).squeeze(-1) - y
        return residual.square().sum(-1) / 2 + self.penalty * theta.abs().sum(-1)
