"""The control of learned hyper-parameters: the best of many random draws."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.hyperparameters.config import RandomSearchOptions
from metalearn.hyperparameters.gain import Gain
from metalearn.hyperparameters.method import training
from metalearn.hyperparameters.result import write_result
from metalearn.hyperparameters.runs import Runs
from metalearn.method import Context, Method
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Metrics, Split
from metalearn.tree import Tree


class RandomSearch(Method):
    """One step is one draw, log-uniform in the ranges (Bergstra and Bengio 2012); the best one stays.

    Every draw is judged by the mean loss on the whole of `search_valid` over the same `runs` inner runs, so
    that draws differ by their hyper-parameters alone.
    """

    def __init__(self, options: RandomSearchOptions, context: Context) -> None:
        if context.hypergradient is not None:
            raise UserError("method random_search uses no hypergradient; set hypergradient=none")
        for key in ("learning_rate_range", "penalty_range"):
            _check_range(key, getattr(options, key))
        self.options, self.seed, self.machine = options, context.seed, context.machine
        self.problem = training(context, options)
        self.runs = Runs(self.problem, context.seed)
        start = self.problem.space.start()
        self.gain = Gain(self.runs, options.evaluation_runs, start)
        self.meta, self.best = start, torch.tensor(torch.inf, dtype=torch.float64, device=self.machine.device)

    def step(self, index: int) -> Metrics:
        """Try draw number `index`."""
        meta = self.draw(index)
        loss = torch.stack([self._loss(meta, run) for run in range(self.options.runs)]).mean()
        better = loss < self.best
        self.meta = {key: torch.where(better, leaf, self.meta[key]) for key, leaf in meta.items()}
        self.best = torch.where(better, loss, self.best)
        return {"search_valid/loss": loss.float(), "search_valid/best_loss": self.best.float()}

    def draw(self, index: int) -> Tree:
        """A point of the space."""
        rng = generator(self.seed, "random_search", index)
        options = self.options
        return self.problem.space.fill(
            lambda shape: _log_uniform(shape, options.learning_rate_range, rng),
            lambda shape: _log_uniform(shape, options.penalty_range, rng),
        )

    def evaluate(self, split: Split) -> Metrics:
        """The gain of the best draw over the starting hyper-parameters, on fresh runs."""
        return self.gain.measure(split, self.meta)

    def state_dict(self) -> dict[str, Any]:
        """The best draw and its loss; a state holds no infinity, so none before the first."""
        best = self.best if bool(self.best.isfinite()) else None
        return {"meta": self.meta, "best": best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        put, best = self.machine.put, state["best"]
        self.meta = {key: put(leaf) for key, leaf in state["meta"].items()}
        self.best = torch.full_like(self.best, torch.inf) if best is None else put(best)
        self.gain.learned.clear()

    def artifacts(self, folder: Path) -> None:
        """The best draw and the mean training curves before and after."""
        write_result(folder, self.problem.space, self.gain, self.meta, "best draw")

    def _loss(self, meta: Tree, run: int) -> Tensor:
        return self.runs.score(self.runs.train(meta, "train", run).params, "search_valid")["loss"]


def _log_uniform(shape: tuple[int, ...], ends: list[float], rng: torch.Generator) -> Tensor:
    """Logarithms, uniform between those of the ends."""
    low, high = (math.log(end) for end in ends)
    return low + (high - low) * torch.rand(shape, generator=rng)


def _check_range(key: str, ends: list[float]) -> None:
    if len(ends) != 2 or ends[0] >= ends[1]:
        raise UserError(
            f"method.{key}: got {ends}, must be the lowest and the highest value, e.g. [0.001,1.0]"
        )
