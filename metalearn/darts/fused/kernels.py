"""The compiled kernels on tensors. Images are [batch height width channel], of edges with that axis first."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.kernels import build

SOURCE = Path(__file__).with_name("kernels.c")
LANES = 8  # channels that the kernels take at a time


class Shape(ctypes.Structure):
    """`Shape` of kernels.c."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in (
            "batch", "edges", "height", "width", "channels",
            "kernel", "stride", "dilation", "shared", "threads",
        )
    ]  # fmt: skip


class Moments(NamedTuple):
    """Of what a normalisation sees, and how many numbers of a channel that was."""

    mean: Float[Tensor, "edge channel"]
    variance: Float[Tensor, "edge channel"]  # of these numbers, without Bessel's correction
    number: int

    def unbiased(self) -> Float[Tensor, "edge channel"]:
        """The variance with Bessel's correction."""
        return self.variance * (self.number / max(1, self.number - 1))


class Line(NamedTuple):
    """slope * gradient + tilt * y + offset: a gradient pulled back through the normalisation of y."""

    slope: Float[Tensor, "... channel"]
    tilt: Float[Tensor, "... channel"]
    offset: Float[Tensor, "... channel"]


class Layer(NamedTuple):
    """What a layer of convolutions reads: relu(scale x + shift) and its weights.

    x is one image for all edges and has no scale, or one for each.
    """

    x: Tensor
    scale: Tensor | None  # [edge channel]
    shift: Tensor | None
    depthwise: Float[Tensor, "edge tap channel"]
    pointwise: Float[Tensor, "edge output input"]
    stride: int
    dilation: int

    def shape(self) -> Shape:
        """Of the input."""
        batch, height, width, channels = self.x.shape[-4:]
        edges, taps, _ = self.depthwise.shape
        shared = self.x.dim() == 4
        return _shape(
            (batch, edges, height, width, channels), round(taps**0.5), self.stride, self.dilation, shared
        )


class Gradients:
    """Of each edge's output: images whose pixels may lie further apart than their channels."""

    def __init__(self, grads: Sequence[Float[Tensor, "batch height width channel"]]) -> None:
        self.grads = [grad if _pixel_step(grad) else grad.contiguous() for grad in grads]
        self.pointers = _pointers(self.grads)
        self.steps = (ctypes.c_long * len(grads))(*(_pixel_step(grad) for grad in self.grads))


class Kernels:
    """Functions of the library for one kind of number. Raises MemoryError where a kernel has no room."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def forward(self, layer: Layer) -> tuple[Tensor, Moments]:
        """What the layer's convolutions give, [edge batch height width channel], and its moments."""
        shape, x = layer.shape(), layer.x
        height, width = (shape.height - 1) // shape.stride + 1, (shape.width - 1) // shape.stride + 1
        y = x.new_empty(shape.edges, shape.batch, height, width, shape.channels)
        mean, squares = _sums(shape, x), _sums(shape, x)
        columns = layer.pointwise.transpose(1, 2).contiguous()
        inputs = (x, layer.scale, layer.shift, layer.depthwise, columns)
        self._call("layer_forward", shape, *map(_pointer, (*inputs, y, mean, squares)))
        return y, _merged(mean, squares, height * width)

    def backward(
        self,
        layer: Layer,
        grads: Gradients,
        y: Tensor,
        line: Line,
        by_x: Tensor,
        by_weights: tuple[Tensor, Tensor] | None,
        centre: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Adds to by_x of a shared input, or writes it; adds to by_weights [thread ...] of both convolutions.

        Returns of an input for each edge the sums [edge channel] of its gradient, and of its gradient times
        x - centre.
        """
        shape = layer.shape()
        total, along = _sums(shape, y), _sums(shape, y)
        by_depthwise, by_pointwise = by_weights or (None, None)
        inputs = (layer.x, layer.scale, layer.shift, centre, layer.depthwise, layer.pointwise)
        outputs = (by_x, total, along, by_depthwise, by_pointwise)
        self._call(
            "layer_backward",
            shape,
            grads.pointers,
            grads.steps,
            *map(_pointer, (y, *line, *inputs, *outputs)),
        )
        return total.sum(0), along.sum(0)

    def moments(self, x: Float[Tensor, "edge batch height width channel"]) -> Moments:
        """Of each edge's channels."""
        shape = _shape((x.shape[1], x.shape[0], *x.shape[2:]))
        mean, squares = _sums(shape, x), _sums(shape, x)
        self._call("moments", shape, *map(_pointer, (x, mean, squares)))
        return _merged(mean, squares, shape.height * shape.width)

    def mix(
        self, terms: Sequence[Tensor], scale: Float[Tensor, "term edge channel"], offset: Tensor
    ) -> list[Tensor]:
        """Of each edge the sum of scaled terms and the offset [edge channel]."""
        edges = scale.shape[1]
        out = [terms[0].new_empty(terms[0].shape) for _ in range(edges)]
        shape = _shape((terms[0].shape[0], edges, *terms[0].shape[1:]))
        arrays = ctypes.c_long(len(terms)), _pointers(terms), _owned(terms)
        self._call("mix", shape, *arrays, _pointer(scale), _pointer(offset), _pointers(out))
        return out

    def project(
        self, grads: Gradients, terms: Sequence[Tensor], centre: Float[Tensor, "term edge channel"]
    ) -> tuple[Tensor, Tensor]:
        """Sums of the gradients, [edge channel], and of gradient * (term - centre), [term edge channel]."""
        first = grads.grads[0]
        shape = _shape((first.shape[0], len(grads.grads), *first.shape[1:]))
        total = _sums(shape, first)
        along = first.new_empty(len(terms), *total.shape)
        arrays = grads.pointers, grads.steps, ctypes.c_long(len(terms)), _pointers(terms), _owned(terms)
        self._call("project", shape, *arrays, *map(_pointer, (centre, total, along)))
        return total.sum(0), along.sum(1)

    def gather(self, grads: Gradients, slope: Tensor, term: Tensor, tilt: Tensor, offset: Tensor) -> Tensor:
        """The gradient of a term that is one for all edges; slope [edge channel], the others [channel]."""
        out = torch.empty_like(term)
        shape = _shape((term.shape[0], len(grads.grads), *term.shape[1:]))
        tensors = map(_pointer, (slope, term, tilt, offset, out))
        self._call("gather", shape, grads.pointers, grads.steps, *tensors)
        return out

    def _call(self, name: str, shape: Shape, *arguments: object) -> None:
        function = getattr(self.library, name)
        if name.startswith("layer") and function(ctypes.byref(shape), *arguments):
            raise MemoryError(f"{name}: no room for the images of {shape.threads} threads")
        if not name.startswith("layer"):
            function(ctypes.byref(shape), *arguments)


def kernels(x: Float[Tensor, "batch channel height width"]) -> Kernels | None:
    """Those for x; None where it is on another device, has other channels, or no compiler is at hand."""
    if x.device.type != "cpu" or x.shape[1] % LANES:
        return None
    library = build(x.dtype, SOURCE).library
    return Kernels(library) if library else None


def threads(batch: int) -> int:
    """As many as torch has, none without an image."""
    return max(1, min(torch.get_num_threads(), batch))


def _shape(
    sizes: tuple[int, ...], kernel: int = 1, stride: int = 1, dilation: int = 1, shared: bool = False
) -> Shape:
    return Shape(*sizes, kernel, stride, dilation, int(shared), threads(sizes[0]))


def _sums(shape: Shape, like: Tensor) -> Tensor:
    return like.new_zeros(shape.batch, shape.edges, shape.channels)


def _merged(mean: Tensor, squares: Tensor, pixels: int) -> Moments:
    """Moments of a batch from those of its images, [batch edge channel]."""
    middle = mean.mean(0)
    total = squares.sum(0) + pixels * (mean - middle).square().sum(0)
    count = pixels * mean.shape[0]
    return Moments(middle, total / count, count)


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _owned(terms: Sequence[Tensor]) -> ctypes.Array:
    """Which terms have an image for each edge."""
    return (ctypes.c_long * len(terms))(*(int(term.dim() == 5) for term in terms))


def _pixel_step(image: Float[Tensor, "batch height width channel"]) -> int:
    """Numbers from pixel to pixel; 0 where pixels do not lie evenly, each with its channels together."""
    _, height, width, channels = image.shape
    step = image.stride(2)
    even = image.stride() == (height * width * step, width * step, step, 1)
    return step if even and step >= channels else 0
