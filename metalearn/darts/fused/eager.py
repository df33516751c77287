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
from metalearn.darts.fused.statistics import track


def leave(
    x: Float[Tensor, "batch channel height width"],
    edges: Leaving,
    weights: Float[Tensor, "edge operation"],
) -> list[Tensor]:
    """What each edge adds to the node it leads to."""
    channels, places = x.shape[1], edges.places
    # one contiguous row an operation: torch 2.13 reads a strided scale wrongly in batch_norm's backward pass
    wide = weights.t().repeat_interleave(channels, dim=1).contiguous()
    positive = _side_by_side(torch.relu(x), len(edges))
    total = None
    for kind in SEPARABLES:
        convolved = _separable(positive, edges, kind, wide[places[kind.name]])
        total = convolved if total is None else total.add_(convolved)
    assert total is not None
    if edges.stride == 2:
        total.add_(_reduced(x, edges, wide[places["skip_connect"]]))
    shared = _shared(x, edges, weights)
    return [a + b for a, b in zip(total.split(channels, dim=1), shared, strict=True)]


def _side_by_side(x: Float[Tensor, "batch channel height width"], edges: int) -> Tensor:
    """x once for each edge, as channels that lie together."""
    image = x.permute(0, 2, 3, 1).unsqueeze(3)
    return image.expand(-1, -1, -1, edges, -1).flatten(3).permute(0, 3, 1, 2)


def _separable(x: Tensor, edges: Leaving, kind: Separable, scale: Tensor) -> Tensor:
    stride = edges.stride
    for number in range(kind.layers):
        layer = edges.layer(kind, number)
        if number:
            x, stride = torch.relu_(x), 1
        x = Depthwise.apply(x, layer.depthwise, stride, kind.dilation)  # type: ignore[assignment]
        x = F.conv2d(x, layer.pointwise, groups=len(edges))
        last = number == kind.layers - 1
        x = _normalise(x, [layer.norms], scale if last else None)
    return x


def _reduced(x: Tensor, edges: Leaving, scale: Tensor) -> Tensor:
    """The skip connections of stride 2."""
    skips, x = edges.reductions(), torch.relu(x)
    straight = torch.cat([skip.straight.weight for skip in skips])
    shifted = torch.cat([skip.shifted.weight for skip in skips])
    halves = [F.conv2d(x, straight, stride=2), F.conv2d(x[:, :, 1:, 1:], shifted, stride=2)]
    both = torch.cat([half.unflatten(1, (len(edges), -1)) for half in halves], dim=2).flatten(1, 2)
    return _normalise(both, [[skip.norm for skip in skips]], scale)


def _shared(x: Tensor, edges: Leaving, weights: Float[Tensor, "edge operation"]) -> list[Tensor]:
    """What is one image for all edges, as each edge weighs it: pools, and the identity."""
    pooled = {
        "max_pool_3x3": F.max_pool2d(x, 3, edges.stride, padding=1),
        "avg_pool_3x3": F.avg_pool2d(x, 3, edges.stride, padding=1, count_include_pad=False),
    }
    terms = {
        name: _normalise(image, [[norm] for norm in edges.norms(name, 1)]) for name, image in pooled.items()
    }
    if edges.stride == 1:
        terms["skip_connect"] = x
    images = torch.stack([image.permute(0, 2, 3, 1) for image in terms.values()])
    shares = weights[:, [edges.places[name] for name in terms]]
    mixed = (shares @ images.flatten(1)).unflatten(1, images.shape[1:])
    return [image.permute(0, 3, 1, 2) for image in mixed]


def _normalise(x: Tensor, norms: list[list[nn.BatchNorm2d]], scale: Tensor | None = None) -> Tensor:
    """Normalisation by the batch; each row of `norms` has all of x's channels side by side.

    Rows have the same statistics and keep running ones of their own.
    """
    first = norms[0][0]
    if not first.track_running_stats:
        return F.batch_norm(x, None, None, scale, None, True, 0.0, first.eps)
    mean, variance = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    x = F.batch_norm(x, mean, variance, scale, None, True, 1.0, first.eps)
    for row in norms:
        track(row, mean.chunk(len(row)), variance.chunk(len(row)))
    return x
