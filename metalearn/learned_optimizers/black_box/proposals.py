"""Optimizers that are not learned, in one interface: asked for a point, told its value."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from metalearn.learned_optimizers.black_box.config import BlackBoxControlsOptions
from metalearn.learned_optimizers.black_box.losses import expected_improvement
from metalearn.rng import Key, generator, seed_of
from metalearn.task import Predicted, Queried
from metalearn.tree import Tree

Point = Float[Tensor, "1 dimension"]


class Proposer(ABC):
    """One optimizer on one function of the unit box."""

    @abstractmethod
    def ask(self, state: Tree) -> Point:
        """The next query, float64. `state` is the function's: for one that may know its distribution."""

    @abstractmethod
    def tell(self, value: float) -> None:
        """The function's answer to the last query."""


class RandomSearch(Proposer):
    """Uniform on the box."""

    def __init__(self, dimension: int, rng: Generator) -> None:
        self.dimension, self.rng = dimension, rng

    def ask(self, state: Tree) -> Point:  # noqa: ARG002
        return torch.rand(1, self.dimension, generator=self.rng, dtype=torch.float64)

    def tell(self, value: float) -> None:
        """Random search learns nothing."""


class TruePrior(Proposer):
    """Expected improvement under the process that the functions are drawn from.

    The best of Sobol candidates are refined by Adam within the box. The first query is the box's middle: the
    prior knows no better point. The paper's "Spearmint, fixed hyper-parameters" is of this kind.
    """

    def __init__(
        self, functions: Predicted, dimension: int, options: BlackBoxControlsOptions, seed: int
    ) -> None:
        self.functions, self.dimension, self.options = functions, dimension, options
        self.sobol = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
        self.best: float | None = None

    def ask(self, state: Tree) -> Point:
        if self.best is None:
            return torch.full((1, self.dimension), 0.5, dtype=torch.float64)
        points = self.sobol.draw(self.options.candidates * self.dimension, dtype=torch.float64)
        with torch.no_grad():
            found = self._improvement(state, points)
        starts = points[found.topk(min(self.options.starts, len(points))).indices]
        return self._refined(state, starts)

    def tell(self, value: float) -> None:
        self.best = value if self.best is None else min(self.best, value)

    def _improvement(
        self, state: Tree, points: Float[Tensor, "points dimension"]
    ) -> Float[Tensor, " points"]:
        device = next(iter(state.values())).device
        mean, deviation = self.functions.predict(state, points.to(device).unsqueeze(0))
        assert self.best is not None
        return expected_improvement(mean[0], deviation[0], torch.full_like(mean[0], self.best)).cpu()

    def _refined(self, state: Tree, starts: Float[Tensor, "points dimension"]) -> Point:
        """The best point that Adam comes to, the starts among them."""
        points = starts.clone().requires_grad_()
        descent = torch.optim.Adam([points], self.options.refinement_rate, maximize=True)
        seen, found = [starts], [self._improvement(state, starts)]
        for _ in range(self.options.refinements):
            (points.grad,) = torch.autograd.grad(self._improvement(state, points).sum(), points)
            descent.step()
            with torch.no_grad():
                points.clamp_(0, 1)
                seen.append(points.detach().clone())
                found.append(self._improvement(state, points))
        return torch.cat(seen)[torch.cat(found).argmax()].unsqueeze(0)


def make_proposer(
    name: str, options: BlackBoxControlsOptions, functions: Queried, dimension: int, key: tuple[Key, ...]
) -> Proposer:
    """The optimizer called `name`, its randomness that of `key`."""
    if name == "random":
        return RandomSearch(dimension, generator(*key))
    if name == "gp_true":
        assert isinstance(functions, Predicted)
        return TruePrior(functions, dimension, options, seed_of(*key))
    from metalearn.learned_optimizers.black_box.libraries import sampler  # takes a second

    return sampler(name, options, dimension, key)
