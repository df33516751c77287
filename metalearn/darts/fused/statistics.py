"""Running statistics of many normalisations at once."""

from collections.abc import Sequence

import torch
from torch import nn

from metalearn.darts.fused.kernels import Moments


@torch.no_grad()
def track(norms: Sequence[Sequence[nn.BatchNorm2d]], moments: Sequence[Moments]) -> None:
    """Move the running statistics of each edge's normalisations as they would do themselves."""
    first = norms[0][0]
    if not first.track_running_stats:
        return
    assert first.momentum is not None
    flat = [norm for edges in norms for norm in edges]
    means = [mean for moment in moments for mean in moment.mean]
    variances = [
        variance
        for moment in moments
        for variance in moment.variance * (moment.count / max(1, moment.count - 1))
    ]
    torch._foreach_lerp_([norm.running_mean for norm in flat], means, first.momentum)  # type: ignore[misc]
    torch._foreach_lerp_([norm.running_var for norm in flat], variances, first.momentum)  # type: ignore[misc]
    torch._foreach_add_([norm.num_batches_tracked for norm in flat], 1)  # type: ignore[misc]
