"""Plain networks: baselines, and what learned optimizers train."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.network import Network, Output
from metalearn.options import ConvnetOptions, MlpOptions, PointOptions
from metalearn.registry import UserError
from metalearn.task import Kind, TaskSpec
from metalearn.tree import Tree

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class Mlp(Network):
    """A perceptron on flattened inputs."""

    def __init__(self, options: MlpOptions, spec: TaskSpec) -> None:
        _require_kind("mlp", spec, "classification", "few_shot")
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = [math.prod(spec.input_shape), *options.hidden]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[options.activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], spec.outputs))
        _draw(self, options.deviation)

    def forward(self, x: Tensor, state: Tree | None = None) -> Output:  # noqa: ARG002
        return Output(self.layers(x))


class Convnet(Network):
    """Convolution, batch normalisation, ReLU and 2x2 max pooling, repeated; then fully connected layers.

    Batch normalisation always uses the statistics of the batch at hand and keeps no running ones, so the
    network is a pure function of parameters and batch (Andrychowicz et al. 2016, section 3.3).
    """

    def __init__(self, options: ConvnetOptions, spec: TaskSpec) -> None:
        _require_kind("convnet", spec, "classification")
        channels, height, width = _image_shape(spec)
        smallest = 2 ** len(options.channels)
        if min(height, width) < smallest:
            raise UserError(
                f"convnet: {len(options.channels)} poolings need images of at least {smallest} pixels, "
                f"{spec.name} has {height}x{width}; name fewer network.channels"
            )
        if options.kernel % 2 == 0:
            raise UserError(f"network.kernel: got {options.kernel}, must be odd")
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise([channels, *options.channels]):
            layers.append(nn.Conv2d(inputs, outputs, options.kernel, padding=options.kernel // 2))
            layers += _normalised(outputs, options.batch_norm)
            layers.append(nn.MaxPool2d(2))
        pixels = (height // smallest) * (width // smallest)
        sizes = [[channels, *options.channels][-1] * pixels, *options.hidden]
        layers.append(nn.Flatten())
        for inputs, outputs in itertools.pairwise(sizes):
            layers.append(nn.Linear(inputs, outputs))
            layers += _normalised(outputs, options.batch_norm)
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], spec.outputs))
        _draw(self, options.deviation)

    def forward(self, x: Tensor, state: Tree | None = None) -> Output:  # noqa: ARG002
        return Output(self.layers(x))


class Point(Network):
    """theta [dimension], one and the same for every function of a batch."""

    def __init__(self, options: PointOptions, spec: TaskSpec) -> None:
        _require_kind("point", spec, "function")
        super().__init__()
        self.theta = nn.Parameter(options.deviation * torch.randn(spec.outputs))

    def forward(self, x: Float[Tensor, "batch ..."], state: Tree | None = None) -> Output:  # noqa: ARG002
        return Output(self.theta.expand(x.shape[0], -1))


def _require_kind(network: str, spec: TaskSpec, *kinds: Kind) -> None:
    if spec.kind not in kinds:
        allowed = " or ".join(kinds)
        raise UserError(f"network {network}: task {spec.name} is a {spec.kind}; choose a {allowed} task")


def _image_shape(spec: TaskSpec) -> tuple[int, int, int]:
    if len(spec.input_shape) != 3:
        raise UserError(
            f"network convnet: task {spec.name} has inputs of shape {spec.input_shape}, must be images "
            "(channels, height, width); choose network=mlp or a task of images"
        )
    channels, height, width = spec.input_shape
    return channels, height, width


class BatchShift(nn.Module):
    """Batch normalisation by the batch at hand, with a shift and no scale, as in the authors' problems.py."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "batch channel ..."]) -> Tensor:
        """Zero mean and unit variance over batch and pixels, then the shift."""
        return F.batch_norm(x, None, None, training=True) + self.shift.view(-1, *[1] * (x.dim() - 2))


def _normalised(size: int, batch_norm: bool) -> list[nn.Module]:
    """[normalisation,] ReLU."""
    return [BatchShift(size), nn.ReLU()] if batch_norm else [nn.ReLU()]


def _draw(network: nn.Module, deviation: float | None) -> None:
    """Draw weights and biases of all linear maps anew from a normal distribution, if one is asked for."""
    if deviation is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=deviation)
