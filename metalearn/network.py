"""What is trained: a module from a batch's inputs to its outputs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from metalearn.task import Task
from metalearn.tree import Tree


class Output(NamedTuple):
    """What a network returns."""

    logits: Tensor  # [batch classes] or [batch time outputs]; theta [batch dimension] for functions
    state: Tree = {}  # hidden state after the last symbol; empty where there is none
    auxiliary: Tensor | None = None  # logits of an auxiliary head, in training only
    penalty: Tensor | None = None  # what training adds to the task's loss (activation regularisation)


class Network(nn.Module, ABC):
    """A module with one signature for all tasks.

    Its trainer sets `progress`, how far training is, 0 to 1 (drop path grows with it), and `fused`, whether
    it may compute by kernels that are differentiated once; those that have none ignore it.
    """

    progress: float = 0.0
    fused: bool = False

    @abstractmethod
    def forward(self, x: Tensor, state: Tree | None = None) -> Output:
        """Score inputs; recurrent networks continue from `state`, or from their initial state if None."""


class Found(Protocol):
    """What a search finds."""

    def to_json(self) -> str:
        """The text of its file."""
        ...


@runtime_checkable
class OfGenotype(Protocol):
    """A network that was built from what a search found."""

    @property
    def genotype(self) -> Found:
        """What it was built from."""
        ...


@runtime_checkable
class Translator(Protocol):
    """A network that answers source sentences."""

    def translate(self, source: Int[Tensor, "batch time"]) -> list[list[int]]:
        """The best answer to each, found by beam search: symbols without those that begin and end it."""
        ...


@runtime_checkable
class Illustrated(Protocol):
    """A network that has pictures and figures of its own to leave with a run."""

    def illustrate(self, task: Task, folder: Path) -> None:
        """Write them (svg, json) into `folder`; called in evaluation, without gradients."""
        ...


@runtime_checkable
class Annotated(Protocol):
    """A network that shows what goes on in it while it reads a text."""

    def annotate(self, symbols: Int[Tensor, " time"], words: Sequence[str]) -> str:
        """A picture (SVG) of the text, `words` its symbols; called in evaluation, without gradients."""
        ...


@torch.no_grad()
def multiply_adds(network: Network, shape: tuple[int, ...]) -> int:
    """The multiplications of convolutions and products of matrices for one example of `shape`, in evaluation.

    Normalisation, activations, pools and biases are left out, as papers on small networks do; so is what
    makes weights that are kept for all examples.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads slowly

    training, leaf = network.training, next(network.parameters())
    counter = FlopCounterMode(display=False)
    two = leaf.new_zeros(2, *shape)  # examples, for networks that normalise by what they are given
    network.eval()
    network(two)
    with counter:
        network(two)
    network.train(training)
    return counter.get_total_flops() // 4  # which counts an addition beside each
