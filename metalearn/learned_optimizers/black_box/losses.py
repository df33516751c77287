"""What a trajectory of queries is worth (Chen et al. 2017, section 2.1); functions are made small."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def expected_improvement(
    mean: Float[Tensor, "..."], deviation: Float[Tensor, "..."], best: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """E max(best - y, 0) of a normal y (Jones et al. 1998, eq. 15)."""
    z = (best - mean) / deviation
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return deviation * (z * torch.special.ndtr(z) + density)


def trajectory_loss(
    name: str,
    values: Float[Tensor, "time batch"],
    improvements: Float[Tensor, "time batch"] | None,
    detach_incumbent: bool,
) -> Float[Tensor, ""]:
    """The mean over functions of a loss, sums over queries divided by their number.

    sum: all values (eq. 3). final: the last one. ei: minus the expected improvement of each query under the
    true prior (eq. 4), differentiated through all that it depends on. oi: min(y_t - min_{i<t} y_i, 0), in
    order of completion (eq. 5); undetached the terms telescope to the best value minus the first, detached
    each improvement is credited to its own query alone. The first query has nothing to improve on and
    counts 0 in ei and oi.
    """
    if name == "sum":
        return values.mean()
    if name == "final":
        return values[-1].mean()
    if name == "ei":
        assert improvements is not None
        return -improvements.mean()
    best = values.cummin(0).values[:-1]
    gained = (values[1:] - (best.detach() if detach_incumbent else best)).clamp_max(0)
    return gained.sum(0).mean() / len(values)
