"""Batch normalisation and ReLU in few passes over memory, with their first and second derivatives by hand.

Autograd's own second derivative of the elementary operations reads and writes three times as many tensors.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.registry import UserError


class NormRelu(torch.autograd.Function):
    """relu(shift + scale n), with n = y normalised over its rows; twice differentiable.

    y is [task row channel]; scale and shift are [task or 1, 1, channel].
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
        centred = y - _mean(y)
        inverse = (_mean(centred.square()) + epsilon).rsqrt()
        output = torch.addcmul(shift, centred, inverse * scale).relu_()
        ctx.save_for_backward(y, scale, centred, inverse, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        y, scale, centred, inverse, output = ctx.saved_tensors
        return *NormReluSlope.apply(grads[0], y, scale, centred, inverse, output.detach()), None


class NormReluSlope(torch.autograd.Function):
    """Pulls d loss / d output back to y, scale and shift; differentiable once, in the first three arguments.

    With n = inverse centred and h = grad where the output is positive, d loss / dy = J(scale h), where
    J(v) = inverse (v - mean v - n mean(n v)) is symmetric: J also carries a direction of y to one of n.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, y: Tensor, scale: Tensor, centred: Tensor, inverse: Tensor, output: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.ops.aten.threshold_backward(grad, output, 0)
        mean, along, slope = _mean(h), _mean(h * centred) * inverse, scale * inverse
        ctx.save_for_backward(scale, centred, inverse, output, h, mean, along)
        by_y = torch.addcmul(-slope * mean, centred, -slope * along * inverse).addcmul_(h, slope)
        rows = y.shape[1]
        return by_y, (along * rows).sum_to_size(scale.shape), (mean * rows).sum_to_size(scale.shape)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *directions: Tensor
    ) -> tuple[Tensor | None, ...]:
        """With dy, dscale, dshift the directions: the derivatives of <h, scale dn + dscale n + dshift>."""
        refuse_third_derivative()
        dy, dscale, dshift = directions
        scale, centred, inverse, output, h, mean, along = ctx.saved_tensors
        slope, dy_mean, dy_along = scale * inverse, _mean(dy), _mean(dy * centred) * inverse
        by_scale = inverse * (_mean(h * dy) - mean * dy_mean - along * dy_along)  # mean of h dn

        n_share, dy_share = dscale - slope * dy_along, -slope * along
        moved = torch.addcmul(dshift - slope * dy_mean, centred, inverse * n_share).addcmul_(dy, slope)
        by_grad = torch.ops.aten.threshold_backward(moved, output, 0)

        constant = -(n_share * mean + dy_share * dy_mean)
        tilt = -(n_share * along + dy_share * dy_along) - scale * by_scale
        by_y = torch.addcmul(inverse * constant, centred, inverse.square() * tilt)
        by_y.addcmul_(h, inverse * n_share).addcmul_(dy, inverse * dy_share)
        return by_grad, by_y, (by_scale * dy.shape[1]).sum_to_size(scale.shape), None, None, None


def _mean(y: Float[Tensor, "task row channel"]) -> Float[Tensor, "task 1 channel"]:
    return y.sum(dim=1, keepdim=True) / y.shape[1]


def refuse_third_derivative() -> None:
    """Raises UserError in a second backward pass that is itself to be differentiated.

    torch's own `once_differentiable` would leave the term out in silence under `torch.autograd.grad`.
    """
    if torch.is_grad_enabled():
        raise UserError(
            "conv4 with stacked weights has no third derivative; set method.vectorise=false for one"
        )
