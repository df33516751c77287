"""What an optimizer has found: the best value so far, over functions, and where it is written."""

import json
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from metalearn.task import Metrics, Split

NORMAL_95 = 1.959964  # two-sided quantile


class Scores(NamedTuple):
    """The best value after each query, min_{i<=t} f(x_i) (Chen et al. 2017, section 3)."""

    best: Float[Tensor, "time function"]

    @classmethod
    def of(cls, values: Float[Tensor, "time function"]) -> "Scores":
        """From the values in the order in which they came."""
        return cls(values.cummin(0).values)

    @property
    def mean(self) -> Float[Tensor, " time"]:
        """Over functions."""
        return self.best.mean(1)

    @property
    def interval(self) -> Float[Tensor, " time"]:
        """Half of the mean's 95 % interval; 0 for one function."""
        count = self.best.shape[1]
        return NORMAL_95 * self.best.std(1, correction=min(1, count - 1)) / count**0.5

    def metrics(self, split: Split, name: str = "") -> Metrics:
        """At the end, and over the whole run: the mean over t of the best value so far."""
        suffix = f"/{name}" if name else ""
        return {
            f"{split}/best_value{suffix}": self.mean[-1],
            f"{split}/best_value_interval{suffix}": self.interval[-1],
            f"{split}/mean_best_value{suffix}": self.mean.mean(),
        }


def write_scores(folder: Path, scores: dict[str, Scores]) -> None:
    """`trajectories.json`: the mean best value by query, a series for each optimizer, and its interval."""
    longest = len(next(iter(scores.values())).best)
    record = {
        "x": list(range(1, longest + 1)),
        "x_label": "query",
        "y_label": "mean best value",
        "series": {name: score.mean.tolist() for name, score in scores.items()},
        "interval": {name: score.interval.tolist() for name, score in scores.items()},
        "functions": {name: score.best.shape[1] for name, score in scores.items()},
    }
    (folder / "trajectories.json").write_text(json.dumps(record, indent=1) + "\n")
