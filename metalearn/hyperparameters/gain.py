"""What learned hyper-parameters are worth: the expected gain over the starting ones, on fresh runs."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hyperparameters.runs import Runs
from metalearn.task import Metrics, Split
from metalearn.tree import Tree

CONFIDENCE = 0.95


class Outcomes(NamedTuple):
    """The same runs under one point of the space."""

    error: Float[Tensor, " run"]  # %
    loss: Float[Tensor, " run"]
    diverged: Float[Tensor, " run"]
    curve: Float[Tensor, " step"]  # mean training loss; not finite where a run was not


class Gain:
    """delta: by how much learning improves expected performance, start - learned, over fresh paired runs.

    Both sides train on `search_train` from the same starts on the same batches, whose keys learning never
    uses. `valid` scores them on `search_valid`, the half that learning descends; `test` on the test split.
    The starting side is a constant of the run and is had once a split.
    """

    def __init__(self, runs: Runs, count: int, start: Tree) -> None:
        self.runs, self.count, self.start = runs, count, start
        self.starting: dict[str, Outcomes] = {}
        self.learned: dict[str, Outcomes] = {}  # last evaluated, by split

    def measure(self, split: Split, learned: Tree) -> Metrics:
        """`split/error` (%), `split/loss`, the starting ones, the gains, in points for errors.

        `gain_error_interval` is half the 95 % t-interval of the mean gain; `diverged` are shares of runs.
        """
        if split not in self.starting:
            self.starting[split] = self.outcomes(split, self.start)
        before = self.starting[split]
        after = self.learned[split] = self.outcomes(split, learned)
        gained = before.error - after.error
        metrics = {
            "error": after.error.mean(),
            "loss": after.loss.mean(),
            "diverged": after.diverged.mean(),
            "start_error": before.error.mean(),
            "start_loss": before.loss.mean(),
            "start_diverged": before.diverged.mean(),
            "gain_error": gained.mean(),
            "gain_error_interval": half_width(gained),
            "gain_loss": (before.loss - after.loss).mean(),
        }
        return {f"{split}/{quantity}": value.float() for quantity, value in metrics.items()}

    def outcomes(self, split: Split, meta: Tree) -> Outcomes:
        """All evaluation runs of a split at `meta`, one after the other."""
        trained = [self.runs.train(meta, split, run) for run in range(self.count)]
        scored: Split = "test" if split == "test" else "search_valid"
        scores = [self.runs.score(run.params, scored) for run in trained]
        return Outcomes(
            torch.stack([score["error"] for score in scores]),
            torch.stack([score["loss"] for score in scores]),
            torch.stack([run.diverged for run in trained]),
            torch.stack([run.losses for run in trained]).mean(0),
        )


def half_width(values: Float[Tensor, " run"]) -> Float[Tensor, ""]:
    """Half the 95 % t-interval of the mean of at least two values (Student 1908)."""
    from scipy.special import stdtrit  # lighter to import than scipy.stats

    quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return quantile * values.std() / math.sqrt(len(values))
