"""What loss curves of a learned optimizer are worth beside those of a tuned one on the same problems."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Curve = Float[Tensor, "points problems"]
CONFIDENCE = 0.95

SCORES = (  # of `score`
    "final_ratio",
    "final_ratio_low",
    "final_ratio_high",
    "speed_up",
    "steps_to_reach",
    "reached",
    "rose",
)


def shown(curve: Curve) -> Curve:
    """A loss that is not finite counts as that run's first one."""
    return torch.where(curve.isfinite(), curve, curve[:1])


def smoothed(curve: Curve, window: int) -> Curve:
    """The mean of a point and the `window - 1` before it, in float64; of fewer at the beginning.

    Minibatch losses are noisy: one lucky minibatch is no loss reached.
    """
    total = torch.cumsum(shown(curve).double(), 0)
    before = torch.cat([torch.zeros_like(total[:window]), total[:-window]])
    count = torch.arange(1, len(total) + 1, device=curve.device).clamp_max(window)
    return (total - before) / count.unsqueeze(1)


def score(ours: Curve, theirs: Curve, window: int) -> dict[str, Tensor]:
    """How far and how fast ours get beside theirs; both run on the same problems and minibatches.

    final_ratio: our last loss over theirs, geometric mean over problems, with the 95 % t-interval of the
    problems (final_ratio_low, final_ratio_high). speed_up: the steps in which their mean curve first gets to
    its last loss, over the steps in which ours first gets there (steps_to_reach); one that never does is
    counted as one step more than there are, so that steps_to_reach > horizon says never and speed_up is then
    an upper bound. reached: share of problems on which our curve gets to their last loss. rose: share of
    our runs that end above their start. All losses are means over `window` points. Last losses that their
    type could not tell from 0 beside the first one count as the least that it could: logarithms have no 0.
    """
    mine, other = smoothed(ours, window), smoothed(theirs, window)
    target = other.mean(1)[-1]
    steps, their_steps = _first(mine.mean(1) <= target), _first(other.mean(1) <= target)
    return {
        **_ratio(mine[-1], other[-1], torch.finfo(ours.dtype).eps * mine[0]),
        "speed_up": their_steps / steps,
        "steps_to_reach": steps,
        "reached": (mine <= other[-1]).any(0).double().mean(),
        "rose": (mine[-1] > mine[0]).double().mean(),
    }


def half_width(values: Float[Tensor, " samples"]) -> Float[Tensor, ""]:
    """Half the 95 % t-interval of the mean (Student 1908); 0 of a lone value, which has none."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return torch.zeros_like(values.sum())
    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    return quantile * values.std() / math.sqrt(count)


def _ratio(mine: Tensor, other: Tensor, least: Tensor) -> dict[str, Tensor]:
    least = least.clamp_min(torch.finfo(least.dtype).tiny)
    logs = mine.clamp_min(least).log() - other.clamp_min(least).log()
    middle, half = logs.mean(), half_width(logs)
    return {
        "final_ratio": middle.exp(),
        "final_ratio_low": (middle - half).exp(),
        "final_ratio_high": (middle + half).exp(),
    }


def _first(there: Tensor) -> Tensor:
    """The first step, of 1 on, at which a curve is there; one more than the last where it never is."""
    steps = torch.arange(len(there), device=there.device).clamp_min(1)
    return torch.where(there, steps, len(there)).min().double()
