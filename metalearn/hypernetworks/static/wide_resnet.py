"""Wide residual networks for small images (Zagoruyko and Komodakis 2016), the main networks of CIFAR-10."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks.static.config import WideResnetOptions
from metalearn.hypernetworks.static.convnet import image_shape
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree

WIDTH = 16  # channels of the first convolution, and of the first group at width factor 1


class WideResnet(Network):
    """`conv1`; the groups `conv2` to `conv4` of (depth - 4) / 6 blocks, 16 k, 32 k and 64 k channels wide,
    each of the last two at half the resolution before; normalisation, ReLU, mean over pixels, a linear map.

    Names as in Ha, Dai and Le 2017, appendix A.3.2. With `fused` maps lie channels-last.
    Raises UserError for tasks without images.
    """

    def __init__(self, options: WideResnetOptions, spec: TaskSpec) -> None:
        inputs, _, _ = image_shape(options.name, spec)
        super().__init__()
        blocks, widths = _blocks(options.depth), [WIDTH * options.factor * scale for scale in (1, 2, 4)]
        self.conv1 = _convolution(inputs, WIDTH, 1, options.convolution_bias)
        self.conv2 = _group(options, blocks, WIDTH, widths[0], 1)
        self.conv3 = _group(options, blocks, widths[0], widths[1], 2)
        self.conv4 = _group(options, blocks, widths[1], widths[2], 2)
        self.norm = nn.BatchNorm2d(widths[2])
        self.classifier = nn.Linear(widths[2], spec.outputs)
        _draw(self)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        state: Tree | None = None,  # noqa: ARG002
    ) -> Output:
        """Logits [batch class]."""
        if self.fused:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        x = F.relu(self.norm(x), inplace=True)
        return Output(self.classifier(x.mean(dim=(2, 3))))


class Block(nn.Module):
    """Normalisation, ReLU and a 3x3 convolution, twice, on a shortcut.

    Where widths differ, the shortcut too begins after the first ReLU (as in the authors' code).
    """

    def __init__(self, options: WideResnetOptions, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.widening = stride, outputs - inputs
        self.first_norm = nn.BatchNorm2d(inputs)
        self.first = _convolution(inputs, outputs, stride, options.convolution_bias)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.second = _convolution(outputs, outputs, 1, options.convolution_bias)
        self.shortcut: nn.Conv2d | None = None
        if self.widening and options.shortcuts == "projection":
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """The block's sum [batch outputs height/stride width/stride]."""
        active = F.relu(self.first_norm(x), inplace=True)
        residual = self.second(F.relu(self.second_norm(self.first(active)), inplace=True))
        return residual + (self._shortened(active) if self.widening else x)

    def _shortened(self, active: Tensor) -> Tensor:
        """The shortcut to more channels: a projection, or every `stride`-th pixel and zeros behind."""
        if self.shortcut is not None:
            return self.shortcut(active)
        return F.pad(active[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.widening))


def _group(options: WideResnetOptions, blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Blocks of which the first changes width and resolution."""
    others = [Block(options, outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(options, inputs, outputs, stride), *others)


def _blocks(depth: int) -> int:
    """Blocks a group. Raises UserError if the depth has no whole number of them."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(
            f"network.depth: got {depth}, must be 6 n + 4 for n = 1, 2, ...: 10, 16, 22, 28, 34, 40"
        )
    return (depth - 4) // 6


def _convolution(inputs: int, outputs: int, stride: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


def _draw(network: nn.Module) -> None:
    """Kernels normal with variance 2 / (outputs times kernel area), biases 0, as the authors draw them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
