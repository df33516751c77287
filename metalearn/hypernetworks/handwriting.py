"""Networks that write: a recurrent stack on a pen's moves, and a linear map to a mixture's parameters."""

from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.generation import generate
from metalearn.hypernetworks.config import (
    HandwritingHyperlstmOptions,
    HandwritingLstmOptions,
    HandwritingOptions,
    cell_of,
    hyper_of,
)
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.lstm import LSTM
from metalearn.hypernetworks.recurrent import Stack
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Continued, Task, TaskSpec
from metalearn.tree import Tree

DRAWN = 6  # lines of each kind in the picture that a run leaves
TEMPERATURES = {"drawn": 1.0, "drawn, temperature 0.5": 0.5}  # the model itself; Graves' bias of 1


@runtime_checkable
class Exhibited(Continued, Protocol):
    """A task that shows lines beside real ones."""

    def gallery(self, drawn: Mapping[str, Sequence[Tensor]]) -> str:
        """Titled columns of lines, each [time 3], beside real ones: the text of an SVG."""
        ...


class HandwritingNetwork(Network, ABC):
    """Says of each move what the next may be; the state's tensors are [layers batch units].

    With `skip`, every layer also reads the moves and every layer's output reaches the last map (Graves 2013,
    section 2). Padding at the end of shorter lines is read like anything else: what comes before it does not
    know, and what is said of it the task leaves out.
    """

    def __init__(
        self, options: HandwritingOptions, spec: TaskSpec, layers: list[Stack], parts: tuple[str, ...]
    ) -> None:
        if spec.kind != "handwriting":
            raise UserError(
                f"network {options.name}: task {spec.name} is a {spec.kind}; choose a handwriting task, such "
                "as task=pen_strokes"
            )
        super().__init__()
        self.options, self.parts = options, parts
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(options.units * (options.layers if options.skip else 1), spec.outputs)

    def forward(self, x: Float[Tensor, "batch time 3"], state: Tree | None = None) -> Output:
        moves = x.transpose(0, 1)
        inputs, outputs, lasts = moves, [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Stack)
            layer.fused = self.fused
            start = None if state is None else tuple(state[part][number : number + 1] for part in self.parts)
            if self.options.skip and number:
                inputs = torch.cat([moves, inputs], dim=2)
            inputs, last = layer(inputs, start)
            outputs.append(inputs)
            lasts.append(last)
        seen = torch.cat(outputs, dim=2) if self.options.skip else inputs
        seen = F.dropout(seen, 1.0 - self.options.output_keep, self.training)
        packed = (torch.cat(parts) for parts in zip(*lasts, strict=True))
        return Output(self.output(seen.transpose(0, 1)), dict(zip(self.parts, packed, strict=True)))

    def illustrate(self, task: Task, folder: Path) -> None:
        """`samples.svg`: lines drawn beside real ones, as long as those of the first batch of `valid`."""
        assert isinstance(task, Exhibited)
        time = next(iter(task.sweep("valid"))).x.shape[1]
        prompt = task.opening.expand(DRAWN, 1, -1)
        drawn = {
            title: list(generate(self, task, prompt, time, generator("samples", title), temperature))
            for title, temperature in TEMPERATURES.items()
        }
        (folder / "samples.svg").write_text(task.gallery(drawn), encoding="utf-8")


class HandwritingLstm(HandwritingNetwork):
    """Ordinary LSTMs."""

    def __init__(self, options: HandwritingLstmOptions, spec: TaskSpec) -> None:
        cell = cell_of(options)
        layers: list[Stack] = [LSTM(size, options.units, cell) for size in _inputs(options, spec)]
        super().__init__(options, spec, layers, ("h", "c"))


class HandwritingHyperlstm(HandwritingNetwork):
    """HyperLSTMs."""

    def __init__(self, options: HandwritingHyperlstmOptions, spec: TaskSpec) -> None:
        hyper = hyper_of(options)
        cell = cell_of(options)
        layers: list[Stack] = [HyperLSTM(size, options.units, cell, hyper) for size in _inputs(options, spec)]
        super().__init__(options, spec, layers, ("h", "c", "hyper_h", "hyper_c"))


def _inputs(options: HandwritingOptions, spec: TaskSpec) -> list[int]:
    """What each layer reads."""
    width = spec.input_shape[0] if spec.input_shape else 0  # 0: a task of another kind, refused later
    deeper = options.units + (width if options.skip else 0)
    return [width] + [deeper] * (options.layers - 1)
