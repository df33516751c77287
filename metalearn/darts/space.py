"""What a differentiable search needs of the network it searches in; strategies know no more of it."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from metalearn.darts.genotype import Genotype
from metalearn.network import Network, Output
from metalearn.tree import Tree


class SearchSpace(Network):
    """A network that is a function of alpha: one weight before softmax for each operation on each edge.

    Alpha comes from outside and is never among `parameters()`.
    """

    alpha_shapes: dict[str, tuple[int, int]]  # edges and operations of each kind of cell

    @abstractmethod
    def forward(self, x: Tensor, state: Tree | None = None, alpha: Tree | None = None) -> Output:
        """Score inputs under the architecture `alpha`; None weighs all operations equally."""

    @abstractmethod
    def discretise(self, alpha: Tree) -> Genotype:
        """The genotype that `alpha` stands for."""


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Run a block in which batch normalisation uses the batch and leaves its running statistics alone."""
    tracking = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True
