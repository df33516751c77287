"""The network of one genotype for ImageNet in the mobile setting (appendix A.2.3)."""

from jaxtyping import Float
from torch import Tensor, nn

from metalearn.darts.cell import image_shape
from metalearn.darts.config import ImagenetNetworkOptions
from metalearn.darts.derived import AuxiliaryHead, DerivedNetwork, check_auxiliary
from metalearn.task import TaskSpec

SHRINKS = 32  # the stem divides height and width by 8, two reduction cells by 4


class ImagenetNetwork(DerivedNetwork):
    """The network for large images: three convolutions of stride 2, then the cells.

    The stem's last but one map is the first cell's older input. Raises UserError for other tasks.
    """

    def __init__(self, options: ImagenetNetworkOptions, spec: TaskSpec) -> None:
        inputs, height, width = image_shape(options.name, spec, SHRINKS)
        super().__init__(options.genotype, options.nodes, options.drop_path)
        channels = options.channels
        self.stem0 = nn.Sequential(
            *_halved(inputs, channels // 2), nn.ReLU(), *_halved(channels // 2, channels)
        )
        self.stem1 = nn.Sequential(nn.ReLU(), *_halved(channels, channels))
        features = self._stack(options.cells, channels, channels, True, spec.outputs)
        if options.auxiliary:
            check_auxiliary(spec, (height // SHRINKS, width // SHRINKS), 7)
            self.auxiliary = AuxiliaryHead(features, spec.outputs, stride=2, normalised=False)

    def begin(self, x: Float[Tensor, "batch channel height width"]) -> tuple[Tensor, Tensor]:
        older = self.stem0(x)
        return older, self.stem1(older)


def _halved(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs)]
