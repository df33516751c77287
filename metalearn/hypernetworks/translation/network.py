"""Networks that translate: GNMT (Wu et al. 2016), and GNMT of HyperLSTMs (Ha, Dai and Le 2017, table 6)."""

from abc import ABC
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks.config import cell_of, hyper_of
from metalearn.hypernetworks.hyperlstm import HyperLSTMCell
from metalearn.hypernetworks.lstm import LSTMCell
from metalearn.hypernetworks.translation.attention import Memory
from metalearn.hypernetworks.translation.beam import search
from metalearn.hypernetworks.translation.config import GnmtHyperlstmOptions, GnmtLstmOptions, GnmtOptions
from metalearn.hypernetworks.translation.decoder import Decoder, States
from metalearn.hypernetworks.translation.encoder import Encoder, MakeCell
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import PADDING, TaskSpec
from metalearn.tree import Tree


class Gnmt(Network, ABC):
    """Scores the next piece of a target at each place, or searches for the best target.

    Both languages have the same pieces; their embeddings and the last map have weights of their own, as the
    printed number of parameters suggests. All weights but the cells' start uniform in +-`options.uniform`.
    """

    def __init__(self, options: GnmtOptions, spec: TaskSpec, make_cell: MakeCell) -> None:
        if spec.kind != "translation":
            raise UserError(
                f"network {options.name}: task {spec.name} is a {spec.kind}; choose a translation task"
            )
        super().__init__()
        self.options = options
        self.source = nn.Embedding(spec.outputs, options.units)
        self.target = nn.Embedding(spec.outputs, options.units)
        self.encoder = Encoder(make_cell, options.units, options.layers, options.residual_from)
        self.decoder = Decoder(
            make_cell, options.units, options.layers, options.residual_from, options.attention_units
        )
        self.output = nn.Linear(options.units, spec.outputs)
        for part in (self.source, self.target, self.decoder.attention, self.output):
            _start_uniform(part, options.uniform)

    def forward(self, x: Int64[Tensor, "batch 2 time"], state: Tree | None = None) -> Output:  # noqa: ARG002
        memory = self.remember(x[:, 0])
        logits, _, _ = self.read(x[:, 1].t(), memory, self.decoder.initial_states(len(x)))
        return Output(logits.transpose(0, 1))

    def remember(self, source: Int[Tensor, "batch time"]) -> Memory:
        """What the decoder may look at."""
        present = source != PADDING
        embedded = self.source(source.t())
        values = self.encoder(embedded, present.t(), self.options.dropout, self.fused)
        return self.decoder.attention.remember(values.transpose(0, 1), present)

    def read(
        self, target: Int[Tensor, "time batch"], memory: Memory, states: States
    ) -> tuple[Float[Tensor, "time batch pieces"], Float[Tensor, "time batch source"], States]:
        """Logits of each next piece, the attention's weights, and the last states."""
        dropout = self.options.dropout
        outputs, weights, states = self.decoder(self.target(target), memory, states, dropout, self.fused)
        return self.output(F.dropout(outputs, dropout, self.training)), weights, states

    @torch.no_grad()
    def translate(self, source: Int[Tensor, "batch time"]) -> list[list[int]]:
        """The best translation that beam search finds of each sentence; call it in evaluation mode."""
        beam = self.options.search.beam
        memory = self.remember(source).repeat(beam)

        def step(symbols: Int64[Tensor, " row"], states: States) -> tuple[Tensor, Tensor, States]:
            logits, weights, states = self.read(symbols[None], memory, states)
            return logits[0].log_softmax(-1), weights[0], states

        states = self.decoder.initial_states(len(source) * beam)
        return search(step, states, source != PADDING, self.options.search)


class GnmtLstm(Gnmt):
    """Of ordinary LSTMs; with `uniform_cells`, their weights too start uniform, as all of GNMT's do."""

    def __init__(self, options: GnmtLstmOptions, spec: TaskSpec) -> None:
        super().__init__(
            options, spec, partial(LSTMCell, hidden_size=options.units, options=cell_of(options))
        )
        for cell in self.modules() if options.uniform_cells else ():
            if isinstance(cell, LSTMCell):
                for weight in (cell.weight_x, cell.weight_h, cell.bias):
                    nn.init.uniform_(weight, -options.uniform, options.uniform)


class GnmtHyperLstm(Gnmt):
    """Of HyperLSTMs, which start as appendix A.2.3 of Ha, Dai and Le 2017 says or as their code does."""

    def __init__(self, options: GnmtHyperlstmOptions, spec: TaskSpec) -> None:
        hyper = hyper_of(options)
        cell = partial(HyperLSTMCell, hidden_size=options.units, options=cell_of(options), hyper=hyper)
        super().__init__(options, spec, cell)


def _start_uniform(part: nn.Module, limit: float) -> None:
    for parameter in part.parameters():
        nn.init.uniform_(parameter, -limit, limit)
