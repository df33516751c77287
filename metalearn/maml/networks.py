"""The convolutional network of few-shot classification."""

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.maml.config import Conv4Options
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree

LAYERS = 4
KINDS = ("few_shot", "classification")


class Conv4(Network):
    """Four times 3x3 convolution, batch normalisation, ReLU and downsampling by two; a linear head.

    "stride" halves by the convolution itself and gives the head the mean over the last pixels (Finn et al.
    2017 on Omniglot, from memory; learn2learn's OmniglotCNN does the same); "pool" halves by 2x2 max pooling
    after the ReLU and gives it all pixels (Vinyals et al. 2016; Finn et al. 2017 on miniImageNet, from
    memory). Batch normalisation always uses the batch at hand.
    """

    def __init__(self, options: Conv4Options, spec: TaskSpec) -> None:
        channels, height, width = _image_shape(spec)
        pool, smallest = options.downsampling == "pool", 2**LAYERS
        if pool and min(height, width) < smallest:
            raise UserError(
                f"network conv4: {LAYERS} poolings need images of at least {smallest} pixels, {spec.name} "
                f"has {height}x{width}; set network.downsampling=stride"
            )
        super().__init__()
        sizes = itertools.pairwise([channels, *[options.channels] * LAYERS])
        blocks = [Block(inputs, outputs, pool) for inputs, outputs in sizes]
        pixels = (height // smallest) * (width // smallest) if pool else 1
        gather = nn.Flatten() if pool else PixelMean()
        self.layers = nn.Sequential(*blocks, gather, nn.Linear(options.channels * pixels, spec.outputs))

    def forward(self, x: Float[Tensor, "batch channel height width"], state: Tree | None = None) -> Output:  # noqa: ARG002
        return Output(self.layers(x))


class Block(nn.Module):
    """3x3 convolution, batch normalisation with scale and shift, ReLU, and max pooling if `pool`."""

    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=1 if pool else 2, padding=1)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Half the height and width, rounded up by strides and down by pooling."""
        x = self.norm(self.conv(x)).relu()
        return F.max_pool2d(x, 2) if self.pool else x


class PixelMean(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Tensor:
        return x.mean(dim=(2, 3))


def _image_shape(spec: TaskSpec) -> tuple[int, int, int]:
    if spec.kind not in KINDS or len(spec.input_shape) != 3:
        raise UserError(
            f"network conv4: task {spec.name} is a {spec.kind} with inputs of shape {spec.input_shape}, must "
            f"be a {' or '.join(KINDS)} of images (channels, height, width); choose such a task or "
            "network=mlp"
        )
    channels, height, width = spec.input_shape
    return channels, height, width
