"""Depthwise convolution whose backward pass avoids the library's slow kernels; in torch's operations.

On the CPU (oneDNN 3.12) the input's gradient is fastest as a forward convolution of the gradient with the
flipped kernel, and dilated kernels are undilated ones on the four phases of the image.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.registry import UserError


class Depthwise(torch.autograd.Function):
    """Depthwise convolution, padded to keep the size, of any height and width where the stride is 1, of even
    ones where it is 2; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, None, stride, padding, dilation, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_second_derivative()
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        by_x = _by_input(grad, weight, ctx.stride, ctx.dilation) if ctx.needs_input_grad[0] else None
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(grad, x, weight, ctx.stride, ctx.dilation)
        return by_x, by_weight, None, None


def _by_input(grad: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """A stride of 2 and no dilation is left to the library, which is fast there."""
    padding = dilation * (weight.shape[-1] // 2)
    if stride == 1:
        return F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, weight.shape[0])
    batch, channels, height, width = grad.shape
    x = grad.new_zeros(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
    if dilation == 1:
        return _library(grad, x, weight, stride, dilation, (True, False, False))[0]
    x[:, :, ::2, ::2] = F.conv2d(grad, weight.flip(2, 3), None, 1, padding // 2, 1, channels)
    return x


def _by_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    even = x.shape[2] % 2 == x.shape[3] % 2 == 0
    if dilation == 2 and stride == 2:
        x, stride, dilation = x[:, :, ::2, ::2], 1, 1
    elif dilation == 2 and even:
        x, grad, dilation = _phases(x), _phases(grad), 1
    x = x.contiguous(memory_format=torch.channels_last)
    return _library(grad, x, weight, stride, dilation, (False, True, False))[1]


def _library(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    padding = dilation * (weight.shape[-1] // 2)
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        [stride, stride],
        [padding, padding],
        [dilation, dilation],
        False,
        [0, 0],
        weight.shape[0],
        list(wanted),
    )


def _phases(x: Tensor) -> Tensor:
    """Every second row and column, from each of the four places to start at, as four times the batch."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    phases = rows.permute(2, 4, 0, 1, 3, 5).reshape(4 * batch, height // 2, width // 2, channels)
    return phases.permute(0, 3, 1, 2)


def refuse_second_derivative() -> None:
    """Raises UserError in a backward pass that is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise UserError(
            "the fused supernet has no second derivative; set machine.fused=false for the plain one"
        )
