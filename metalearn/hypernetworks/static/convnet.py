"""The two-convolution network of MNIST, of which the second kernel is generated."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.hypernetworks.static.config import MnistConvnetOptions
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class MnistConvnet(Network):
    """Convolution, ReLU and 2x2 max pooling, twice; then one linear map (Ha, Dai and Le 2017, section 4.1).

    With `fused` maps lie channels-last. Raises UserError for tasks without images, or with images of a side
    under four pixels.
    """

    def __init__(self, options: MnistConvnetOptions, spec: TaskSpec) -> None:
        inputs, height, width = image_shape(options.name, spec, smallest=4)
        if options.kernel % 2 == 0:
            raise UserError(f"network.kernel: got {options.kernel}, must be odd, for maps to keep their size")
        super().__init__()
        channels, padding = options.channels, options.kernel // 2
        self.first = nn.Conv2d(inputs, channels, options.kernel, padding=padding)
        self.second = nn.Conv2d(channels, channels, options.kernel, padding=padding)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(channels * (height // 4) * (width // 4), spec.outputs)
        for layer in (self.first, self.second, self.classifier):
            _draw(layer, options.deviation, options.bias)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        state: Tree | None = None,  # noqa: ARG002
    ) -> Output:
        """Logits [batch class]."""
        if self.fused:  # a copy: with a single channel `contiguous` would leave the strides as they are
            x = x.clone(memory_format=torch.channels_last)
        x = self.pool(self.first(x).relu_())
        x = self.pool(self.second(x).relu_())
        return Output(self.classifier(x.flatten(1)))


def image_shape(network: str, spec: TaskSpec, smallest: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of a task's images. Raises UserError if it has none, or smaller ones."""
    if spec.kind != "classification" or len(spec.input_shape) != 3:
        raise UserError(
            f"network {network}: task {spec.name} is a {spec.kind} of inputs {spec.input_shape}; "
            "choose a classification task of images (channels, height, width)"
        )
    channels, height, width = spec.input_shape
    if min(height, width) < smallest:
        raise UserError(
            f"network {network}: images of {spec.name} are {height}x{width}, must be at least "
            f"{smallest}x{smallest}; choose a task of larger ones"
        )
    return channels, height, width


def _draw(layer: nn.Conv2d | nn.Linear, deviation: float, bias: float) -> None:
    """Weights from a normal distribution cut off at two deviations, as TensorFlow's truncated normal."""
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, bias)
