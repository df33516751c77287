"""Optimizers of libraries."""

import warnings

import optuna
import torch

from metalearn.learned_optimizers.black_box.config import BlackBoxControlsOptions
from metalearn.learned_optimizers.black_box.proposals import Point, Proposer
from metalearn.rng import Key, seed_of
from metalearn.tree import Tree


class OptunaSampler(Proposer):
    """A sampler of the library optuna, asked and told."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, dimension: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(direction="minimize", sampler=sampler)
        self.space = {f"x{i}": optuna.distributions.FloatDistribution(0.0, 1.0) for i in range(dimension)}
        self.trial: optuna.Trial | None = None

    def ask(self, state: Tree) -> Point:  # noqa: ARG002
        self.trial = self.study.ask(dict(self.space))
        return torch.tensor([[self.trial.params[name] for name in self.space]], dtype=torch.float64)

    def tell(self, value: float) -> None:
        assert self.trial is not None
        self.study.tell(self.trial, value)


def sampler(
    name: str, options: BlackBoxControlsOptions, dimension: int, key: tuple[Key, ...]
) -> OptunaSampler:
    """optuna's `gp` (Matern 5/2, its hyper-parameters fitted at each query, log EI) or `tpe`."""
    seed = seed_of(*key) % 2**32  # what numpy takes
    if name == "tpe":
        chosen = optuna.samplers.TPESampler(seed=seed, n_startup_trials=options.startup)
        return OptunaSampler(chosen, dimension)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        chosen = optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=options.startup, deterministic_objective=True
        )
    return OptunaSampler(chosen, dimension)
