"""Networks with one set of weights for each task, computed side by side without `vmap`.

Written in batched products and elementary operations; autograd is right to second order through conv4 and
pays for one pass, whatever the number of tasks: on CPUs six tenths of `vmap`'s time for a small perceptron,
and seven to eight tenths for conv4 (benchmarks/maml.py).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.machine import full
from metalearn.maml.networks import Block, Conv4, PixelMean
from metalearn.maml.norm_relu import NormRelu, refuse_third_derivative
from metalearn.maml.problem import FewShot
from metalearn.networks import Mlp
from metalearn.problem import Inner, Problem
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree

FORMS = (Mlp, Conv4)  # networks that are `layers` in a row, each of which `_layer` knows
POINTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid)


class SideBySide(Problem):
    """The tasks of a meta-batch as one problem: its losses are the sums over tasks, its batches [task ...].

    Inner parameters are [task ...], so the gradient of the sum holds each task's own. A convolution's are
    kept as the matrix [row column input, output] that the product takes; `laid` and `unlaid` go there and
    back. The meta-parameters are those of `one`.
    """

    def __init__(self, one: FewShot, tasks: int) -> None:
        self.one, self.tasks, self.task = one, tasks, one.task
        self.second_derivatives = one.second_derivatives

    def init(self, meta: Tree, rng: torch.Generator | None = None) -> Inner:
        """Every task at the initialisation."""
        params = self.one.init(laid(meta), rng).params
        return Inner({name: leaf.new_zeros(self.tasks, *leaf.shape) for name, leaf in params.items()}, {})

    def inner_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the tasks' inner losses."""
        return self.one.near(self.outer_loss(meta, params, batch), params)

    def update(self, meta: Tree, inner: Inner, grads: Tree) -> Inner:
        """One step of every task."""
        return self.one.update(laid(meta), inner, grads)

    def outer_loss(self, meta: Tree, params: Tree, batch: Batch) -> Float[Tensor, ""]:
        """The sum of the tasks' losses."""
        return self._loss(self.score(meta, params, batch), batch)

    def score(self, meta: Tree, params: Tree, batch: Batch) -> Tensor:
        """The outputs [task example ...] of every task's own weights."""
        with self.one.machine.autocast():
            weights = self.one.weights(laid(meta), params)
            return full(forward(self.one.network, weights, batch.x))

    def judge(self, meta: Tree, params: Tree, batch: Batch) -> tuple[Float[Tensor, ""], Metrics]:
        """`outer_loss` and the task's metrics, each [task], from one pass."""
        output = self.score(meta, params, batch)

        def one(output: Tensor, x: Tensor, y: Tensor) -> Metrics:
            return self.task.metrics(output, Batch(x, y, batch.key))

        return self._loss(output, batch), torch.func.vmap(one)(output.detach(), batch.x, batch.y)

    def _loss(self, output: Float[Tensor, "task example output"], batch: Batch) -> Float[Tensor, ""]:
        """The number of tasks times the mean over all examples."""
        together = Batch(batch.x.flatten(0, 1), batch.y.flatten(0, 1), batch.key)
        return self.tasks * self.task.loss(output.flatten(0, 1), together)


def has_form(network: nn.Module) -> bool:
    """Whether `forward` can run the network."""
    return type(network) in FORMS


def laid(tree: Tree) -> Tree:
    """Convolution kernels [output input row column] as matrices [row column input, output]."""
    return {
        k: leaf.permute(2, 3, 1, 0).flatten(0, 2) if leaf.dim() == 4 else leaf for k, leaf in tree.items()
    }


def unlaid(tree: Tree, like: Tree) -> Tree:
    """Back to the shapes of `like`'s leaves, behind the leading dimensions of `tree`'s."""
    return {k: _kernel(leaf, like[k]) if like[k].dim() == 4 else leaf for k, leaf in tree.items()}


def _kernel(leaf: Tensor, like: Tensor) -> Tensor:
    inputs, rows, columns = like.shape[1:]
    return leaf.unflatten(-2, (rows, columns, inputs)).movedim((-1, -2), (-4, -3))


def forward(network: Any, weights: Tree, x: Float[Tensor, "task example ..."]) -> Tensor:
    """What the network would return for each task; weights that no task moved have no dimension of tasks."""
    if x.dim() == 5:
        x = x.movedim(2, 4)
    for index, layer in enumerate(network.layers):
        x = _layer(layer, weights, f"layers.{index}", x)
    return x


def _layer(layer: nn.Module, weights: Tree, name: str, x: Tensor) -> Tensor:
    """One layer; images are [task example height width channel]."""
    if isinstance(layer, Block):
        return _block(layer, weights, name, x)
    if isinstance(layer, nn.Linear):
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return x @ weight.mT + (bias.unsqueeze(1) if bias.dim() == 2 else bias)
    if isinstance(layer, PixelMean):
        return x.mean(dim=(2, 3))
    if isinstance(layer, nn.Flatten):
        return (x.movedim(4, 2) if x.dim() == 5 else x).flatten(2)
    if isinstance(layer, POINTWISE):
        return layer(x)
    raise TypeError(f"layer {name} is a {type(layer).__name__}, which has no stacked form")


def _block(block: Block, weights: Tree, name: str, x: Tensor) -> Tensor:
    """The bias of the convolution is left out: normalisation takes it away again."""
    tasks, examples = x.shape[:2]
    stride = int(block.conv.stride[0])
    height, width = (_halved(size, stride) for size in x.shape[2:4])
    kernel = weights[f"{name}.conv.weight"]
    y = Product.apply(Columns.apply(x, stride), kernel.expand(tasks, -1, -1))
    scale, shift = (_rows(weights[f"{name}.norm.{part}"]) for part in ("weight", "bias"))
    y = NormRelu.apply(full(y), scale, shift, block.norm.eps).view(tasks, examples, height, width, -1)
    if not block.pool:
        return y
    pooled = F.max_pool2d(y.flatten(0, 1).movedim(3, 1), 2).movedim(1, 3)
    return pooled.unflatten(0, (tasks, examples))


def _rows(leaf: Tensor) -> Tensor:
    """[task channel] or [channel] as [task or 1, 1, channel]."""
    return leaf.view(-1, 1, leaf.shape[-1])


def _halved(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


class Columns(torch.autograd.Function):
    """The 3x3 surroundings of every stride-th pixel: [task, example row column, 9 channel].

    torch's own `unfold` takes 3 times as long here. Linear; its transpose is `Image`.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "task example height width channel"], stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        tasks, examples, height, width, channels = x.shape
        height, width = _halved(height, stride), _halved(width, stride)
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        task, example, row, column, _ = padded.stride()
        steps = (task, example, row * stride, column * stride, row, column, 1)
        windows = padded.as_strided((tasks, examples, height, width, 3, 3, channels), steps)
        return windows.reshape(tasks, examples * height * width, 9 * channels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return Image.apply(grads[0], ctx.shape, ctx.stride), None


class Image(torch.autograd.Function):
    """Columns added up where they came from. Linear; its transpose is `Columns`.

    Of one pixel's surroundings, a stride by stride block does not overlap its neighbours': added at once.
    """

    @staticmethod
    def forward(ctx: Any, columns: Tensor, shape: torch.Size, stride: int) -> Tensor:
        ctx.stride = stride
        tasks, examples, height, width, channels = shape
        padded = columns.new_zeros(tasks, examples, height + 2, width + 2, channels)
        rows, across = _halved(height, stride), _halved(width, stride)
        windows = columns.reshape(tasks, examples, rows, across, 3, 3, channels)
        task, example, row, column, _ = padded.stride()
        steps = (task, example, row * stride, column * stride, row, column, 1)
        for i in range(0, 3, stride):
            for j in range(0, 3, stride):
                part = windows[:, :, :, :, i : i + stride, j : j + stride]
                padded.as_strided(part.shape, steps, i * row + j * column).add_(part)
        return padded[:, :, 1:-1, 1:-1].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return Columns.apply(grads[0], ctx.stride), None, None


class Product(torch.autograd.Function):
    """columns @ kernel, twice differentiable; autograd's own derivatives of it lie transposed in memory."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(columns, kernel)
        return columns @ kernel

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return ProductSlope.apply(grads[0], *ctx.saved_tensors, ctx.needs_input_grad)


class ProductSlope(torch.autograd.Function):
    """Pulls d loss / d product back to columns and kernel, as far as each is `needed`."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, columns: Tensor, kernel: Tensor, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(grad, columns, kernel)
        ctx.set_materialize_grads(False)
        by_columns = grad @ kernel.mT if needed[0] else None
        return by_columns, columns.mT @ grad if needed[1] else None

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *directions: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_third_derivative()
        to_columns, to_kernel = directions
        grad, columns, kernel = ctx.saved_tensors
        by_grad = by_columns = by_kernel = None
        if to_columns is not None:
            by_grad, by_kernel = to_columns @ kernel, to_columns.mT @ grad
        if to_kernel is not None:
            by_grad = columns @ to_kernel if by_grad is None else torch.baddbmm(by_grad, columns, to_kernel)
            by_columns = grad @ to_kernel.mT if ctx.needs_input_grad[1] else None
        return by_grad, by_columns, by_kernel, None
