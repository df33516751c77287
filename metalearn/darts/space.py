"""What a differentiable search needs of the network it searches in; strategies know no more of it."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from metalearn.darts.genotype import AnyGenotype
from metalearn.network import Network, Output
from metalearn.tree import Tree


class Choices(NamedTuple):
    """What can be chosen in one kind of cell."""

    operations: tuple[str, ...]  # the columns of alpha
    targets: tuple[int, ...]  # the node that each edge, a row of alpha, leads to
    sources: tuple[int, ...]  # the node that it comes from
    allowed: Bool[Tensor, "edge operation"]  # which operations the space has on which edge

    @property
    def shape(self) -> tuple[int, int]:
        """Edges and operations."""
        return len(self.targets), len(self.operations)


class Mixture(NamedTuple):
    """How much of each operation each edge has."""

    weights: Tree  # by kind of cell, [edge operation]
    running: dict[str, list[list[bool]]] | None = None  # which operations are computed at all; None: all


class SearchSpace(Network):
    """A network that is a function of how its operations are mixed.

    Nothing of the architecture is among `parameters()`. `drop_path` and `skip_dropout` regularise a search;
    its method sets them.
    """

    choices: dict[str, Choices]  # of each kind of cell
    drops_paths: bool = True  # whether `drop_path` means anything here
    drop_path: float = 0.0  # probability that an operation other than identity is cut, for each example
    skip_dropout: float = 0.0  # dropout of the output of identities

    @abstractmethod
    def forward(self, x: Tensor, state: Tree | None = None, mixture: Mixture | None = None) -> Output:
        """Score inputs under a mixture; None weighs all operations of an edge equally."""

    @abstractmethod
    def discretise(self, strengths: Tree) -> AnyGenotype:
        """The genotype of the strongest operations and edges; strengths by kind of cell, [edge operation]."""

    @abstractmethod
    def encode(self, genotype: AnyGenotype) -> dict[str, Bool[Tensor, "edge operation"]]:
        """Where a genotype's operations stand: what `discretise` undoes."""

    @abstractmethod
    def sample(self, rng: torch.Generator) -> AnyGenotype:
        """A genotype drawn uniformly from those that `discretise` can give."""

    @abstractmethod
    def restricted(self, cells: int, allowed: dict[str, Bool[Tensor, "edge operation"]]) -> "SearchSpace":
        """A fresh network of `cells` cells that holds the allowed operations alone.

        Raises UserError where the space has no number of cells.
        """


def one_path(masks: dict[str, Bool[Tensor, "edge operation"]], like: Tensor) -> Mixture:
    """The mixture that gives weight 1 to what is set in `masks`, and runs nothing else."""
    weights = {kind: mask.to(like) for kind, mask in masks.items()}
    return Mixture(weights, {kind: mask.tolist() for kind, mask in masks.items()})


def set_evaluation(network: nn.Module, batch_statistics: bool) -> None:
    """Evaluation mode; with `batch_statistics` batch normalisation still uses the batch at hand."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_statistics)


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
