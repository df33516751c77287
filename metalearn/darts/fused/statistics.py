"""Running statistics of many normalisations at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def track(norms: Sequence[nn.BatchNorm2d], means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
    """Move running statistics as the normalisations would; variances have Bessel's correction."""
    first = norms[0]
    if not first.track_running_stats:
        return
    assert first.momentum is not None
    torch._foreach_lerp_([norm.running_mean for norm in norms], list(means), first.momentum)  # type: ignore[misc]
    torch._foreach_lerp_([norm.running_var for norm in norms], list(variances), first.momentum)  # type: ignore[misc]
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)  # type: ignore[misc]
