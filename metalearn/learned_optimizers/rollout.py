"""Optimizers at work on fresh problems: loss curves, what they come to, and where they are written."""

import json
import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.optimizees import Family, Optimizee
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.problem import Inner
from metalearn.task import Metrics, Split
from metalearn.tree import Tree

MEASURES = ("final_loss", "log_ratio", "mean_log_loss", "diverged")  # of `summary`


def rollout(rule: UpdateRule, meta: Tree, family: Family, split: Split) -> Float[Tensor, "points problems"]:
    """Losses before every step and after the last, `horizon + 1` points, on all problems of a split at once.

    Which problems depends on the family alone, so that every rule is given the same. Of functions the mean
    over a batch counts as one problem.
    """
    curves = [_curve(rule, meta, optimizee, split, count) for optimizee, count in family.evaluation(split)]
    return torch.cat(curves, 1)


def _curve(rule: UpdateRule, meta: Tree, optimizee: Optimizee, split: Split, count: int) -> Tensor:
    theta, curve = optimizee.start(split, range(count)), []
    inner = Inner({"theta": theta}, rule.slots(theta, optimizee.layout))
    with torch.no_grad():
        for step, batch in enumerate(optimizee.feed(split, count)):
            losses, grads = optimizee.losses_and_gradients(inner.params["theta"], batch)
            curve.append(losses.view(count, -1).mean(1))
            if step < optimizee.options.horizon:
                inner = rule.update(meta, inner, {"theta": grads}, optimizee.layout)
    return torch.stack(curve)


def summary(split: Split, curve: Float[Tensor, "points problems"]) -> Metrics:
    """The mean last loss, the mean log10 loss of whole runs, and the share of runs that left the finite.

    `log_ratio` is the mean of log10(last / first), in which problems count alike whatever their scale. A loss
    that is not finite counts as that run's first one, so that divergence ends no training.
    """
    shown = torch.where(curve.isfinite(), curve, curve[:1])
    logs = shown.clamp_min(torch.finfo(shown.dtype).tiny).log10()
    return {
        f"{split}/final_loss": shown[-1].mean(),
        f"{split}/log_ratio": (logs[-1] - logs[0]).mean(),
        f"{split}/mean_log_loss": logs.mean(),
        f"{split}/diverged": (~curve.isfinite().all(0)).to(curve.dtype).mean(),
    }


def write_trajectories(folder: Path, curves: dict[str, Float[Tensor, "points problems"]]) -> None:
    """`trajectories.json`: mean loss over problems by step, a series for each optimizer."""
    series = {name: _numbers(curve.mean(1)) for name, curve in curves.items()}
    points = len(next(iter(series.values())))
    record = {"x": list(range(points)), "x_label": "step", "y_label": "mean loss", "series": series}
    (folder / "trajectories.json").write_text(json.dumps(record, indent=1) + "\n")


def _numbers(curve: Tensor) -> list[float | None]:
    """null where the loss is not finite: JSON has no other word for it."""
    return [value if math.isfinite(value) else None for value in curve.tolist()]
