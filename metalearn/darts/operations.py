"""The operations of the cell spaces of DARTS, NASNet and AmoebaNet (Liu et al. 2019, section 3.1.1).

Every one keeps the channels and divides height and width by its stride. No convolution has a bias.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

CANDIDATES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class Zero(nn.Module):
    """The absence of an edge: zeros of the output's shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Zeros."""
        return x[:, :, :: self.stride, :: self.stride] * 0


class Noise(nn.Module):
    """Standard normal numbers of the output's shape, whatever comes in (Zela et al. 2020, space S4).

    Drawn from torch's global generator, in training and after it, as in the authors' code.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Fresh noise at each call."""
        return torch.randn_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Halves height and width, both even, and loses no pixel: two 1x1 convolutions, one a pixel off."""

    def __init__(self, inputs: int, outputs: int, affine: bool) -> None:
        super().__init__()
        self.straight = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self.shifted = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """ReLU, both convolutions side by side, normalisation."""
        x = torch.relu(x)
        return self.norm(torch.cat([self.straight(x), self.shifted(x[:, :, 1:, 1:])], dim=1))


def relu_conv_norm(inputs: int, outputs: int, affine: bool) -> nn.Module:
    """ReLU, 1x1 convolution, normalisation: brings a cell's input to its channels."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs, affine=affine),
    )


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride, padding, dilation=dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _separable(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    def build(channels: int, stride: int, affine: bool) -> nn.Module:
        first = _depthwise(channels, kernel, stride, 1, affine)
        return nn.Sequential(*first, *_depthwise(channels, kernel, 1, 1, affine))

    return build


def _dilated(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda channels, stride, affine: nn.Sequential(*_depthwise(channels, kernel, stride, 2, affine))


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


def _factorised_7x7(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, 7), stride=(1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(channels, channels, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {  # channels, stride, affine
    "none": lambda channels, stride, affine: Zero(stride),  # noqa: ARG005
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, padding=1),  # noqa: ARG005
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(  # noqa: ARG005
        3, stride, padding=1, count_include_pad=False
    ),
    "skip_connect": _skip,
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "sep_conv_7x7": _separable(7),
    "dil_conv_3x3": _dilated(3),
    "dil_conv_5x5": _dilated(5),
    "conv_7x1_1x7": _factorised_7x7,
    "noise": lambda channels, stride, affine: Noise(stride),  # noqa: ARG005
}


def operation(name: str, channels: int, stride: int, affine: bool = True) -> nn.Module:
    """The operation as the derived network has it."""
    return OPERATIONS[name](channels, stride, affine)


def candidate(name: str, channels: int, stride: int) -> nn.Module:
    """The operation as the supernet has it: pools are normalised too, and no normalisation has a scale.

    A learned scale would undo what alpha says.
    """
    plain = operation(name, channels, stride, affine=False)
    if "pool" in name:
        return nn.Sequential(plain, nn.BatchNorm2d(channels, affine=False))
    return plain
