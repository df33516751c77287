"""Language models on one-hot symbols: a recurrent stack between dropout and a linear map."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.hypernetworks import analysis
from metalearn.hypernetworks.config import (
    HyperlstmLmOptions,
    HyperrnnLmOptions,
    HyperRnnOptions,
    LanguageModelOptions,
    LstmLmOptions,
    RnnLmOptions,
    cell_of,
    hyper_of,
)
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.hyperrnn import HyperRNN
from metalearn.hypernetworks.lstm import LSTM
from metalearn.hypernetworks.recurrent import Stack
from metalearn.hypernetworks.rnn import RNN
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import Task, TaskSpec
from metalearn.tree import Tree


class LanguageModel(Network, ABC):
    """Scores the next symbol at each time; the state's tensors are [layers batch units]."""

    def __init__(
        self,
        options: LanguageModelOptions,
        spec: TaskSpec,
        recurrent: Stack,
        parts: tuple[str, ...],
    ) -> None:
        if spec.kind != "language_model":
            raise UserError(
                f"network {options.name}: task {spec.name} is a {spec.kind}; choose a language_model task"
            )
        super().__init__()
        self.options, self.parts = options, parts
        self.recurrent = recurrent
        self.recurrent.dropout = 1.0 - options.layer_keep
        self.output = nn.Linear(options.units, spec.outputs)

    def forward(self, x: Int[Tensor, "batch time"], state: Tree | None = None) -> Output:
        start = None if state is None else tuple(state[part] for part in self.parts)
        self.recurrent.fused = self.fused
        outputs, last = self.recurrent(x.t(), start, self._input_scale(x.t()))
        outputs = F.dropout(outputs, 1.0 - self.options.output_keep, self.training)
        logits = self.output(outputs.transpose(0, 1))
        return Output(logits, dict(zip(self.parts, last, strict=True)))

    def illustrate(self, task: Task, folder: Path) -> None:
        """`activations.json` where cells have states, `weight_change.svg` where weights change."""
        analysis.illustrate(analysis.Subject(self, self.recurrent), task, folder)

    def _input_scale(self, x: Int[Tensor, "time batch"]) -> Float[Tensor, "time batch 1"] | None:
        """Dropout of one-hot inputs: it can only scale or drop the one that is set."""
        if not self.training or self.options.input_keep == 1.0:
            return None
        ones = torch.ones(*x.shape, 1, dtype=self.output.weight.dtype, device=x.device)
        return F.dropout(ones, 1.0 - self.options.input_keep)


class HyperLanguageModel(LanguageModel, ABC):
    """One whose weights a hyper cell makes anew at each symbol."""

    def annotate(self, symbols: Int[Tensor, " time"], words: Sequence[str]) -> str:
        """How far weights move at each symbol (figure 4)."""
        return analysis.annotate(analysis.Subject(self, self.recurrent), symbols, words)


class RnnLanguageModel(LanguageModel):
    """An ordinary tanh RNN."""

    def __init__(self, options: RnnLmOptions, spec: TaskSpec) -> None:
        super().__init__(options, spec, RNN(spec.outputs, options.units, options.layers), ("h",))


class HyperRnnLanguageModel(HyperLanguageModel):
    """A HyperRNN."""

    def __init__(self, options: HyperrnnLmOptions, spec: TaskSpec) -> None:
        hyper = HyperRnnOptions(options.hyper_units, options.embedding, options.form, options.embeddings_from)
        recurrent = HyperRNN(spec.outputs, options.units, hyper, options.layers)
        super().__init__(options, spec, recurrent, ("h", "hyper_h"))


class LstmLanguageModel(LanguageModel):
    """An ordinary LSTM."""

    def __init__(self, options: LstmLmOptions, spec: TaskSpec) -> None:
        recurrent = LSTM(spec.outputs, options.units, cell_of(options), options.layers)
        super().__init__(options, spec, recurrent, ("h", "c"))


class HyperLstmLanguageModel(HyperLanguageModel):
    """A HyperLSTM."""

    def __init__(self, options: HyperlstmLmOptions, spec: TaskSpec) -> None:
        hyper = hyper_of(options)
        recurrent = HyperLSTM(spec.outputs, options.units, cell_of(options), hyper, options.layers)
        super().__init__(options, spec, recurrent, ("h", "c", "hyper_h", "hyper_c"))
