"""The edges that leave a state by compiled kernels: one differentiable function with its gradients by hand."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.darts.fused.depthwise import refuse_second_derivative
from metalearn.darts.fused.edges import SEPARABLES, Leaving
from metalearn.darts.fused.kernels import Gradients, Kernels, Layer, Line, Moments, threads
from metalearn.darts.fused.statistics import track

POOLS = ("max_pool_3x3", "avg_pool_3x3")
TERMS = (*POOLS, "skip_connect", *(kind.name for kind in SEPARABLES))
SKIP, FIRST = len(POOLS), len(POOLS) + 1  # where the skip connection and the first convolution stand


def leave(
    kernels: Kernels,
    x: Float[Tensor, "batch channel height width"],
    edges: Leaving,
    weights: Float[Tensor, "edge operation"],
) -> list[Tensor]:
    """What each edge adds to the node it leads to."""
    x = x.contiguous(memory_format=torch.channels_last)
    largest = F.max_pool2d(x, 3, edges.stride, padding=1)
    average = F.avg_pool2d(x, 3, edges.stride, padding=1, count_include_pad=False)
    image = _last(x)
    skip = image if edges.stride == 1 else _reduced(torch.relu(image), edges)
    layers, norms = [], []
    for kind in SEPARABLES:
        for number in range(kind.layers):
            layer = edges.layer(kind, number)
            layers += [_taps(layer.depthwise, len(edges)), layer.pointwise.view(len(edges), -1, x.shape[1])]
            norms.append(layer.norms)
    shares = weights[:, [edges.places[name] for name in TERMS]]
    moments: list[Moments] = []
    added = Leave.apply(
        kernels, edges.stride, norms[0][0].eps, moments, image, _last(largest), _last(average), skip, shares, *layers
    )
    track(_terms_norms(edges) + norms, moments)
    return [_first(image) for image in added]  # type: ignore[union-attr]


def _terms_norms(edges: Leaving) -> list[list[nn.BatchNorm2d]]:
    """The normalisations of pools and of the skip connection; a plain one has none."""
    pools = [edges.norms(name, 1) for name in POOLS]
    return pools if edges.stride == 1 else [*pools, [skip.norm for skip in edges.reductions()]]


def _last(x: Tensor) -> Float[Tensor, "batch height width channel"]:
    return x.permute(0, 2, 3, 1).contiguous()


def _first(x: Tensor) -> Float[Tensor, "batch channel height width"]:
    return x.permute(0, 3, 1, 2)


def _taps(weight: Tensor, edges: int) -> Float[Tensor, "edge tap channel"]:
    return weight.view(edges, -1, weight[0].numel()).transpose(1, 2).contiguous()


def _reduced(
    image: Float[Tensor, "batch height width channel"], edges: Leaving
) -> Float[Tensor, "edge batch half_height half_width channel"]:
    """The convolutions of `FactorizedReduce` on each edge."""
    skips, halves = edges.reductions(), []
    for offset, name in enumerate(("straight", "shifted")):
        weight = torch.stack([getattr(skip, name).weight.flatten(1).t() for skip in skips])
        half = image[:, offset::2, offset::2]
        halves.append((half.flatten(0, 2) @ weight).unflatten(1, half.shape[:3]))
    return torch.cat(halves, dim=-1)


class Leave(torch.autograd.Function):
    """The weighted sums of the normalised terms, one image [batch height width channel] for each edge.

    Depthwise outputs are not kept but computed again for the gradient of the weights. `moments` gets those
    of the terms that are normalised, and of the first layers, in the order of TERMS and of the layers.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, stride: int, epsilon: float, moments: list[Moments],
        x: Tensor, largest: Tensor, average: Tensor, skip: Tensor, shares: Tensor, *weights: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        layers, outputs, inner = _convolve(kernels, x, stride, epsilon, weights)
        pools = [_for_all(kernels.moments(image[None]), len(shares)) for image in (largest, average)]
        skips = [kernels.moments(skip)] if stride == 2 else []
        moments += [*pools, *skips, *inner]

        last = [place for place, layer in enumerate(layers) if _is_last(layers, place)]
        terms = [largest, average, skip, *(outputs[place] for place in last)]
        normalised = [*pools, skips[0] if skips else _identity(pools[0]), *(inner[place] for place in last)]
        mean = torch.stack([moment.mean for moment in normalised])
        inverse = torch.stack([(moment.variance + epsilon).rsqrt() for moment in normalised])
        if stride == 1:
            inverse[SKIP] = 1
        scale = (shares.t()[:, :, None] * inverse).contiguous()
        added = kernels.mix(terms, scale, -(scale * mean).sum(0))

        ctx.kernels, ctx.layers, ctx.inner, ctx.epsilon = kernels, layers, inner, epsilon
        ctx.stride, ctx.count = stride, normalised[0].count
        ctx.terms, ctx.outputs, ctx.scale, ctx.inverse, ctx.mean = terms, outputs, scale, inverse, mean
        return tuple(added)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        incoming = Gradients(grads)
        total, along = ctx.kernels.project(incoming, ctx.terms, ctx.mean)
        by_shares = (along * ctx.inverse).sum(-1).t()
        lines = _lines(ctx.scale, ctx.inverse, ctx.mean, total, along, ctx.count)
        if ctx.stride == 1:
            lines.tilt[SKIP], lines.offset[SKIP] = 0, 0
        if not any(ctx.needs_input_grad[4:8]) and not any(ctx.needs_input_grad[9:]):
            return *(None,) * 8, by_shares, *(None,) * len(ctx.needs_input_grad[9:])
        pools = [_gathered(ctx, place, incoming, lines) for place in range(len(POOLS))]
        if ctx.stride == 1:
            by_x, by_skip = _gathered(ctx, SKIP, incoming, lines), None
        else:
            by_x, by_skip = torch.zeros_like(ctx.layers[0].x), _bent(ctx.terms[SKIP], grads, lines)
        by_weights = _back(ctx, incoming, lines, by_x)
        return None, None, None, None, by_x, *pools, by_skip, by_shares, *by_weights


def _convolve(
    kernels: Kernels, x: Tensor, stride: int, epsilon: float, weights: tuple[Tensor, ...]
) -> tuple[list[Layer], list[Tensor], list[Moments]]:
    """All layers of all convolutions, their outputs and the moments of these."""
    layers: list[Layer] = []
    outputs: list[Tensor] = []
    inner: list[Moments] = []
    pairs = zip(weights[::2], weights[1::2], strict=True)
    for kind in SEPARABLES:
        for number in range(kind.layers):
            source, scale, shift = x, None, None
            if number:
                source, scale = outputs[-1], (inner[-1].variance + epsilon).rsqrt()
                shift = -inner[-1].mean * scale
            step = 1 if number else stride
            layers.append(Layer(source, scale, shift, *next(pairs), step, kind.dilation))
            output, moment = kernels.forward(layers[-1])
            outputs.append(output)
            inner.append(moment)
    return layers, outputs, inner


def _is_last(layers: list[Layer], place: int) -> bool:
    """Whether no other layer reads this one's output."""
    return place + 1 == len(layers) or layers[place + 1].scale is None


def _for_all(moments: Moments, edges: int) -> Moments:
    return Moments(moments.mean.expand(edges, -1), moments.variance.expand(edges, -1), moments.count)


def _identity(like: Moments) -> Moments:
    return Moments(torch.zeros_like(like.mean), torch.ones_like(like.mean), like.count)


def _lines(
    scale: Tensor, inverse: Tensor, mean: Tensor, total: Tensor, along: Tensor, count: int
) -> Line:
    """Gradients of normalised values times scale/inverse, by the values: J of batch normalisation."""
    tilt = -scale * inverse.square() * along / count
    return Line(scale, tilt, -scale * total / count - tilt * mean)


def _gathered(ctx: Any, place: int, grads: Gradients, lines: Line) -> Tensor:
    tilt, offset = lines.tilt[place].sum(0), lines.offset[place].sum(0)
    return ctx.kernels.gather(grads, lines.slope[place], ctx.terms[place], tilt, offset)


def _bent(skip: Tensor, grads: tuple[Tensor, ...], lines: Line) -> Tensor:
    """The gradient of the skip connections' convolutions."""
    slope, tilt, offset = (part[SKIP][:, None, None, None] for part in lines)
    out = torch.addcmul(offset, skip, tilt)
    for edge, grad in enumerate(grads):
        out[edge].addcmul_(grad, slope[edge])
    return out


def _back(ctx: Any, grads: Gradients, lines: Line, by_x: Tensor) -> list[Tensor | None]:
    """Adds the convolutions' share to by_x; returns the gradients of their weights, where they are wanted."""
    found: list[list[Tensor | None]] = []
    term = len(TERMS)
    for place in reversed(range(len(ctx.layers))):
        layer = ctx.layers[place]
        if _is_last(ctx.layers, place):
            term -= 1
            incoming, line = grads, Line(*(part[term] for part in lines))
        by_weights = _room(layer) if any(ctx.needs_input_grad[9:]) else None
        out = by_x if layer.scale is None else torch.empty_like(layer.x)
        before = ctx.inner[place - 1]
        centre = None if layer.scale is None else before.mean
        total, along = ctx.kernels.backward(
            layer, incoming, ctx.outputs[place], line, out, by_weights, centre
        )
        if layer.scale is not None:
            line = _lines(layer.scale, layer.scale, before.mean, total, along, before.count)
            incoming = Gradients(list(out))
        found.append([None, None] if by_weights is None else [part.sum(0) for part in by_weights])
    return [grad for pair in reversed(found) for grad in pair]


def _room(layer: Layer) -> tuple[Tensor, Tensor]:
    """Zeros for the gradients of both weights, by thread."""
    number = threads(layer.x.shape[-4])
    return (
        layer.depthwise.new_zeros(number, *layer.depthwise.shape),
        layer.pointwise.new_zeros(number, *layer.pointwise.shape),
    )
