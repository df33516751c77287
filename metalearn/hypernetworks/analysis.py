"""What recurrent networks do while they read (Ha, Dai and Le 2017, figures 4 and 5)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from metalearn.generation import generate
from metalearn.hypernetworks.draw_weight_change import draw
from metalearn.hypernetworks.hyperlstm import HyperLSTMCell
from metalearn.hypernetworks.lstm import LSTMCell
from metalearn.hypernetworks.recurrent import Cell, Stack, normalise
from metalearn.hypernetworks.weight_change import HyperCell, weight_changes
from metalearn.network import Network
from metalearn.rng import generator
from metalearn.task import Continued, Task, Written
from metalearn.tree import Tree

FULL = 0.99  # an activation beyond it, to either side, is saturated
BINS = 40  # of an activation's histogram
ROWS, TIMES = 20, 100  # what is read for it: so many rows of the validation split, so many symbols each
WRITTEN = 240  # symbols of the text that a run draws


class Subject(NamedTuple):
    """A network in evaluation, and the recurrent stack in it that is looked into."""

    network: Network
    stack: Stack

    @property
    def cells(self) -> list[Cell]:
        return [cell for cell in self.stack.cells if isinstance(cell, Cell)]


class Activations(NamedTuple):
    """What the output gates of a layer multiply: tanh of the cell state, normalised where it is so."""

    shares: Float[Tensor, " bin"]  # of the values, in equal bins from -1 to 1
    saturated: float  # share of the values


@torch.no_grad()
def trace(network: Network, x: Shaped[Tensor, "batch time ..."]) -> Tree:
    """The state after each input, read one by one: [time layers batch units] each."""
    states: list[Tree] = []
    for now in x.split(1, dim=1):
        states.append(network(now, states[-1] if states else None).state)
    return {part: torch.stack([state[part] for state in states]) for part in states[0]}


@torch.no_grad()
def annotate(subject: Subject, symbols: Int[Tensor, " time"], words: Sequence[str]) -> str:
    """Figure 4 for a text that a hypernetwork reads, as SVG: a strip for each matrix of each layer."""
    layers = trace(subject.network, symbols[None])["hyper_h"][:, :, 0].unbind(1)
    strips: dict[str, list[float]] = {}
    for number, (cell, hyper) in enumerate(zip(subject.cells, layers, strict=True), start=1):
        assert isinstance(cell, HyperCell)
        prefix = f"{number} " if len(layers) > 1 else ""
        strips |= {prefix + name: moved.tolist() for name, moved in weight_changes(cell, hyper).items()}
    return draw(words, strips)


@torch.no_grad()
def activations(subject: Subject, x: Shaped[Tensor, "batch time ..."]) -> dict[str, Activations]:
    """Figure 5 for what a network reads, by layer."""
    states = trace(subject.network, x)["c"].unbind(1)
    found = {}
    for number, (cell, state) in enumerate(zip(subject.cells, states, strict=True), start=1):
        assert isinstance(cell, LSTMCell | HyperLSTMCell)
        seen = normalise(state, None if cell.norms is None else cell.norms.cell)
        values = torch.tanh(seen.float()).flatten().cpu()
        shares = torch.histc(values, BINS, -1.0, 1.0) / values.numel()
        saturated = float((values.abs() > FULL).double().mean())
        found[_name(cell, number if len(states) > 1 else None)] = Activations(shares, saturated)
    return found


def _name(cell: LSTMCell | HyperLSTMCell, layer: int | None) -> str:
    """What a layer is called, e.g. "LN HyperLSTM 1000, layer 2"."""
    norm = "LN " if cell.norms is not None else ""
    kind = "HyperLSTM" if isinstance(cell, HyperLSTMCell) else "LSTM"
    return f"{norm}{kind} {cell.sizes[0]}" + ("" if layer is None else f", layer {layer}")


def illustrate(subject: Subject, task: Task, folder: Path) -> None:
    """`activations.json`, on the validation split, where all cells have a cell state; `weight_change.svg`, on
    a text that the network writes, where all have a hyper cell.
    """
    if all(isinstance(cell, LSTMCell | HyperLSTMCell) for cell in subject.cells):
        found = activations(subject, next(iter(task.sweep("valid"))).x[:ROWS, :TIMES])
        text = json.dumps(_curves(found), indent=2) + "\n"
        (folder / "activations.json").write_text(text, encoding="utf-8")
    hyper = all(isinstance(cell, HyperCell) for cell in subject.cells)
    if hyper and isinstance(task, Continued) and isinstance(task, Written):
        rng = generator(task.spec.name, "weight change")
        symbols = generate(subject.network, task, task.opening[None, None], WRITTEN, rng, 1.0)[0]
        picture = annotate(subject, symbols, [task.decode(symbol) for symbol in symbols.split(1)])
        (folder / "weight_change.svg").write_text(picture, encoding="utf-8")


def _curves(found: Mapping[str, Activations]) -> dict[str, object]:
    """As reports draw curves."""
    edges = torch.linspace(-1.0, 1.0, BINS + 1, dtype=torch.float64)
    percent = {name: (100.0 * layer.shares.double()).tolist() for name, layer in found.items()}
    return {
        "x": [round(place, 6) for place in ((edges[1:] + edges[:-1]) / 2).tolist()],
        "x_label": "tanh of the cell state",
        "y_label": "share of its values, %",
        "series": {name: [round(share, 4) for share in shares] for name, shares in percent.items()},
        "beyond_0.99_percent": {name: round(100.0 * layer.saturated, 4) for name, layer in found.items()},
    }
