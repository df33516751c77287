"""The edges that leave a state in torch's own operations: no compiler needed, any device.

Edges stand side by side as groups of channels, so that one convolution serves them all; the weight of an
operation is the scale of its last normalisation.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.darts.fused.depthwise import Depthwise
from metalearn.darts.fused.edges import SEPARABLES, Leaving, Separable


def leave(
    x: Float[Tensor, "batch channel height width"],
    edges: Leaving,
    weights: Float[Tensor, "edge operation"],
) -> list[Tensor]:
    """What each edge adds to the node it leads to."""
    number, channels = len(edges), x.shape[1]
    wide = weights.repeat_interleave(channels, dim=0)
    scales = {name: wide[:, place] for name, place in edges.places.items()}
    positive = torch.relu(x).repeat(1, number, 1, 1)
    positive = positive.contiguous(memory_format=torch.channels_last)
    total = _skip(x, edges, scales["skip_connect"])
    for kind in SEPARABLES:
        total = total + _separable(positive, edges, kind, scales[kind.name])
    for name, pooled in _pooled(x, edges.stride).items():
        norms = edges.norms(name, 1)
        total = total + _normalise(pooled.repeat(1, number, 1, 1), norms, scales[name])
    return list(total.split(channels, dim=1))


def _skip(x: Tensor, edges: Leaving, scale: Tensor) -> Tensor:
    if edges.stride == 1:
        return x.repeat(1, len(edges), 1, 1) * scale.view(1, -1, 1, 1)
    skips = edges.reductions()
    x = torch.relu(x)
    straight = torch.cat([skip.straight.weight for skip in skips])
    shifted = torch.cat([skip.shifted.weight for skip in skips])
    halves = [F.conv2d(x, straight, stride=2), F.conv2d(x[:, :, 1:, 1:], shifted, stride=2)]
    split = [half.unflatten(1, (len(edges), -1)) for half in halves]
    return _normalise(torch.cat(split, dim=2).flatten(1, 2), [skip.norm for skip in skips], scale)


def _separable(x: Tensor, edges: Leaving, kind: Separable, scale: Tensor) -> Tensor:
    stride = edges.stride
    for number in range(kind.layers):
        layer = edges.layer(kind, number)
        if number:
            x, stride = torch.relu_(x), 1
        x = Depthwise.apply(x, layer.depthwise, stride, kind.dilation)  # type: ignore[assignment]
        x = F.conv2d(x, layer.pointwise, groups=len(edges))
        last = number == kind.layers - 1
        x = _normalise(x, layer.norms, scale if last else None)
    return x


def _pooled(x: Tensor, stride: int) -> dict[str, Tensor]:
    return {
        "max_pool_3x3": F.max_pool2d(x, 3, stride, padding=1),
        "avg_pool_3x3": F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False),
    }


def _normalise(x: Tensor, norms: list[nn.BatchNorm2d], scale: Tensor | None) -> Tensor:
    """Normalisation by the batch of the edges' channels side by side; moves the running statistics."""
    mean = variance = None
    tracking = norms[0].track_running_stats
    if tracking:
        mean = torch.cat([norm.running_mean for norm in norms])  # type: ignore[misc]
        variance = torch.cat([norm.running_var for norm in norms])  # type: ignore[misc]
    first = norms[0]
    assert first.momentum is not None
    x = F.batch_norm(x, mean, variance, scale, None, True, first.momentum, first.eps)
    if mean is not None and variance is not None:
        _keep(norms, mean, variance)
    return x


@torch.no_grad()
def _keep(norms: list[nn.BatchNorm2d], mean: Tensor, variance: Tensor) -> None:
    number = len(norms)
    torch._foreach_copy_([norm.running_mean for norm in norms], mean.chunk(number))  # type: ignore[misc]
    torch._foreach_copy_([norm.running_var for norm in norms], variance.chunk(number))  # type: ignore[misc]
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)  # type: ignore[misc]
