"""The edges that leave a state by compiled kernels: one differentiable function, gradients by hand."""

from collections.abc import Sequence
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
LAYERS = [(kind, number) for kind in SEPARABLES for number in range(kind.layers)]
LAST = [place for place, (kind, number) in enumerate(LAYERS) if number + 1 == kind.layers]


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
    for kind, number in LAYERS:
        layer = edges.layer(kind, number)
        layers += [_taps(layer.depthwise, len(edges)), layer.pointwise.view(len(edges), -1, x.shape[1])]
        norms.append(layer.norms)
    shares = weights[:, [edges.places[name] for name in TERMS]]
    moments: list[Moments] = []
    added = Leave.apply(
        kernels,
        edges.stride,
        norms[0][0].eps,
        moments,
        image,
        _last(largest),
        _last(average),
        skip,
        shares,
        *layers,
    )
    track(
        [norm for row in _terms_norms(edges) + norms for norm in row],
        [mean for moment in moments for mean in moment.mean],
        [variance for moment in moments for variance in moment.unbiased()],
    )
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
    of the terms that are normalised, and of all layers, in the order of TERMS and of LAYERS.
    """

    @staticmethod
    def forward(
        ctx: Any, kernels: Kernels, stride: int, epsilon: float, moments: list[Moments],
        x: Tensor, largest: Tensor, average: Tensor, skip: Tensor, shares: Tensor, *weights: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        held = Held(kernels, stride, epsilon)
        outputs = held.convolve(x, weights)
        pools = [_for_all(kernels.moments(image[None]), len(shares)) for image in (largest, average)]
        skips = [kernels.moments(skip)] if stride == 2 else []
        moments += [*pools, *skips, *held.inner]

        normalised = [*pools, *(skips or [_identity(pools[0])]), *(held.inner[place] for place in LAST)]
        held.normalise(normalised, shares)
        terms = [largest, average, skip, *(outputs[place] for place in LAST)]
        ctx.held = held
        ctx.save_for_backward(x, largest, average, skip, *outputs, *weights)
        return tuple(kernels.mix(terms, held.scale, -(held.scale * held.mean).sum(0)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        held, (x, *images), wanted = ctx.held, ctx.saved_tensors, ctx.needs_input_grad
        inputs, outputs, weights = (
            images[:FIRST],
            images[FIRST : -2 * len(LAYERS)],
            images[-2 * len(LAYERS) :],
        )
        terms = [*inputs, *(outputs[place] for place in LAST)]
        incoming = Gradients(grads)
        by_shares, lines = held.pull_back(incoming, terms)
        if not any(wanted[4:8]) and not any(wanted[9:]):
            return *(None,) * 8, by_shares, *(None,) * len(weights)
        by_pools = [held.gathered(place, incoming, terms, lines) for place in range(SKIP)]
        if held.stride == 1:
            by_x, by_skip = held.gathered(SKIP, incoming, terms, lines), None
        else:
            by_x, by_skip = torch.zeros_like(x), _bent(terms[SKIP], grads, lines)
        by_weights = held.back(x, outputs, weights, incoming, lines, by_x, any(wanted[9:]))
        return None, None, None, None, by_x, *by_pools, by_skip, by_shares, *by_weights


class Held:
    """What a backward pass needs beside images and weights."""

    inner: list[Moments]  # of each layer's output
    scale: Tensor  # [term edge channel], of each term in the sum: its share times the inverse deviation
    inverse: Tensor  # [term edge channel], 1 over the deviation
    mean: Tensor  # [term edge channel]
    count: int  # of numbers of a channel in the outputs

    def __init__(self, kernels: Kernels, stride: int, epsilon: float) -> None:
        self.kernels, self.stride, self.epsilon, self.inner = kernels, stride, epsilon, []

    def convolve(self, x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """The outputs of all layers; keeps their moments."""
        outputs: list[Tensor] = []
        for place in range(len(LAYERS)):
            output, moments = self.kernels.forward(self._layer(place, x, outputs, weights))
            outputs.append(output)
            self.inner.append(moments)
        return outputs

    def normalise(self, terms: Sequence[Moments], shares: Float[Tensor, "edge term"]) -> None:
        """Keeps the moments of the terms; a skip connection of stride 1 is not normalised."""
        self.count, self.mean = terms[0].number, torch.stack([term.mean for term in terms])
        self.inverse = torch.stack([(term.variance + self.epsilon).rsqrt() for term in terms])
        if self.stride == 1:
            self.inverse[SKIP] = 1
        self.scale = (shares.t()[:, :, None] * self.inverse).contiguous()

    def pull_back(self, grads: Gradients, terms: Sequence[Tensor]) -> tuple[Float[Tensor, "edge term"], Line]:
        """The gradient of the shares, and what makes the terms' gradients of those of the outputs."""
        total, along = self.kernels.project(grads, terms, self.mean)
        lines = _lines(self.scale, self.inverse, self.mean, total, along, self.count)
        if self.stride == 1:
            lines.tilt[SKIP], lines.offset[SKIP] = 0, 0
        return (along * self.inverse).sum(-1).t(), lines

    def gathered(self, place: int, grads: Gradients, terms: Sequence[Tensor], lines: Line) -> Tensor:
        """The gradient of a term that is one for all edges."""
        tilt, offset = lines.tilt[place].sum(0), lines.offset[place].sum(0)
        return self.kernels.gather(grads, lines.slope[place], terms[place], tilt, offset)

    def back(
        self, x: Tensor, outputs: Sequence[Tensor], weights: Sequence[Tensor],
        grads: Gradients, lines: Line, by_x: Tensor, wanted: bool,
    ) -> list[Tensor | None]:  # fmt: skip
        """Adds the convolutions' share to by_x; returns the gradients of their weights, if wanted."""
        found: list[list[Tensor | None]] = []
        incoming, line = grads, lines
        for place in reversed(range(len(LAYERS))):
            layer = self._layer(place, x, outputs, weights)
            if place in LAST:
                term = FIRST + LAST.index(place)
                incoming, line = grads, Line(*(part[term] for part in lines))
            room = _room(layer) if wanted else None
            if layer.scale is None:
                self.kernels.backward(layer, incoming, outputs[place], line, by_x, room)
            else:
                before, by_input = self.inner[place - 1], torch.empty_like(layer.x)
                total, along = self.kernels.backward(
                    layer, incoming, outputs[place], line, by_input, room, before.mean
                )
                line = _lines(layer.scale, layer.scale, before.mean, total, along, before.number)
                incoming = Gradients(list(by_input))
            found.append([part.sum(0) for part in room] if room else [None, None])
        return [grad for pair in reversed(found) for grad in pair]

    def _layer(self, place: int, x: Tensor, outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Layer:
        kind, number = LAYERS[place]
        depthwise, pointwise = weights[2 * place : 2 * place + 2]
        if number == 0:
            return Layer(x, None, None, depthwise, pointwise, self.stride, kind.dilation)
        before = self.inner[place - 1]
        scale = (before.variance + self.epsilon).rsqrt()
        return Layer(outputs[place - 1], scale, -before.mean * scale, depthwise, pointwise, 1, kind.dilation)


def _for_all(moments: Moments, edges: int) -> Moments:
    return Moments(moments.mean.expand(edges, -1), moments.variance.expand(edges, -1), moments.number)


def _identity(like: Moments) -> Moments:
    return Moments(torch.zeros_like(like.mean), torch.ones_like(like.mean), like.number)


def _lines(scale: Tensor, inverse: Tensor, mean: Tensor, total: Tensor, along: Tensor, count: int) -> Line:
    """Back through a normalisation whose output is scaled by scale / inverse.

    `total` and `along` are the sums of the gradient and of the gradient times (value - mean).
    """
    tilt = -scale * inverse.square() * along / count
    return Line(scale, tilt, -scale * total / count - tilt * mean)


def _bent(skip: Tensor, grads: Sequence[Tensor], lines: Line) -> Tensor:
    """The gradient of the skip connections' convolutions."""
    slope, tilt, offset = (part[SKIP][:, None, None, None] for part in lines)
    out = torch.addcmul(offset, skip, tilt)
    for edge, grad in enumerate(grads):
        out[edge].addcmul_(grad, slope[edge])
    return out


def _room(layer: Layer) -> tuple[Tensor, Tensor]:
    """Zeros for the gradients of both weights, by thread."""
    number = threads(layer.x.shape[-4])
    return (
        layer.depthwise.new_zeros(number, *layer.depthwise.shape),
        layer.pointwise.new_zeros(number, *layer.pointwise.shape),
    )
