"""What stands around a recurrent cell: words in and out, dropout, penalties (appendix A.1.2, A.2.2)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.darts.config import RecurrentOptions
from metalearn.network import Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree


class Masks(NamedTuple):
    """Variational dropout, drawn once a sequence; 0 or 1/keep."""

    input: Float[Tensor, "batch units"]
    hidden: Float[Tensor, "batch units"]  # of the last hidden state and of every node's input


class Words(nn.Module):
    """The embedding, which is the decoder's weight too, and the decoder's bias.

    Raises UserError for a task that is no language model.
    """

    def __init__(self, options: RecurrentOptions, spec: TaskSpec) -> None:
        if spec.kind != "language_model":
            raise UserError(
                f"network {options.name}: task {spec.name} is a {spec.kind}; choose a language_model task"
            )
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(uniform(options.start, spec.outputs, options.units))
        self.bias = nn.Parameter(torch.zeros(spec.outputs))

    def embed(self, x: Int[Tensor, "batch time"]) -> Float[Tensor, "time batch units"]:
        """Embeddings, in training after the dropout of words and of embeddings."""
        embedded = F.embedding(x.t(), self.weight)
        if not self.training:
            return embedded
        if self.options.word_dropout:
            kept = self._mask(self.options.word_dropout, len(self.weight), 1)
            embedded = embedded * F.embedding(x.t(), kept)
        return embedded * self._mask(self.options.embedding_dropout, *embedded.shape[1:])

    def masks(self, batch: int) -> Masks | None:
        """The cell's masks of one sequence; None in evaluation."""
        if not self.training:
            return None
        shape = batch, self.options.units
        return Masks(
            self._mask(self.options.input_dropout, *shape), self._mask(self.options.hidden_dropout, *shape)
        )

    def start(self, batch: int, state: Tree | None) -> Float[Tensor, "batch units"]:
        """The hidden state before the first symbol: the one that is carried, or zeros."""
        return state["hidden"] if state else self.weight.new_zeros(batch, self.options.units)

    def score(self, hidden: Float[Tensor, "time batch units"]) -> Output:
        """Logits, the last hidden state and the penalty, from the cell's outputs."""
        dropped = hidden
        if self.training:
            dropped = hidden * self._mask(self.options.output_dropout, *hidden.shape[1:])
        logits = F.linear(dropped.transpose(0, 1).contiguous(), self.weight, self.bias)
        return Output(logits, {"hidden": hidden[-1]}, penalty=self._penalty(hidden, dropped))

    def _penalty(self, hidden: Tensor, dropped: Tensor) -> Float[Tensor, ""] | None:
        """Activation regularisation (Merity et al. 2017), as the authors' code: on outputs after and before
        dropout."""
        size, change = self.options.activation_penalty, self.options.temporal_penalty
        if not self.training or not (size or change):
            return None
        penalty = hidden.new_zeros(())
        if size:
            penalty = penalty + size * dropped.square().mean()
        if change and len(hidden) > 1:
            penalty = penalty + change * (hidden[1:] - hidden[:-1]).square().mean()
        return penalty

    def _mask(self, dropout: float, *shape: int) -> Tensor:
        keep = 1.0 - dropout
        return torch.empty(shape, dtype=self.weight.dtype, device=self.weight.device).bernoulli_(keep) / keep


def uniform(limit: float, *shape: int) -> Tensor:
    """Numbers drawn uniformly within `limit` of 0."""
    return torch.empty(shape).uniform_(-limit, limit)


def masked(state: Tensor, mask: Tensor | None) -> Tensor:
    """`state` after variational dropout; None: none."""
    return state if mask is None else state * mask
