"""A training step of a character model: our HyperLSTM and LSTM beside labml-nn's HyperLSTM and torch's LSTM.

256 units, batch 32, 35 steps in time, 50 symbols; hyper cell of 128 units, embeddings of 4, layer
normalisation. A step is forward, backward, clipping and fused Adam.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import measure, report
from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.lstm import LSTM
from metalearn.rng import generator, seeded

SYMBOLS, HYPER_UNITS, EMBEDDING = 50, 128, 4


def training_step(recurrent: nn.Module, units: int, x: Tensor, y: Tensor) -> Callable[[], object]:
    """A step of `recurrent` between its inputs and a linear map to symbols."""
    output = nn.Linear(units, SYMBOLS)
    parameters = [*recurrent.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs, _ = recurrent(x)
        F.cross_entropy(output(outputs).flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def contenders(units: int, batch: int, times: int) -> dict[str, Callable[[], object]]:
    """Ours read symbols, peers one-hot rows: the same inputs."""
    from labml_nn.hypernetworks.hyper_lstm import HyperLSTM as LabmlHyperLSTM  # pyright: ignore

    x, y = torch.randint(SYMBOLS, (2, times, batch), generator=generator("benchmark"))
    one_hot = F.one_hot(x, SYMBOLS).float()
    norm, plain = (CellOptions(layer_norm, 1.0, 1.0, "paper") for layer_norm in (True, False))
    hyper = HyperOptions(HYPER_UNITS, EMBEDDING, True, 1.0, "current")
    with seeded("benchmark"):
        ours = {
            "metalearn HyperLSTM": HyperLSTM(SYMBOLS, units, norm, hyper),
            "metalearn LSTM, layer norm": LSTM(SYMBOLS, units, norm),
            "metalearn LSTM": LSTM(SYMBOLS, units, plain),
        }
        peers = {
            "labml-nn HyperLSTM": LabmlHyperLSTM(SYMBOLS, units, HYPER_UNITS, EMBEDDING, 1),
            "torch.nn.LSTM (limit)": nn.LSTM(SYMBOLS, units),
        }
        steps = {name: training_step(network, units, x, y) for name, network in ours.items()}
        return steps | {name: training_step(network, units, one_hot, y) for name, network in peers.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--times", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    arguments = parser.parse_args()
    table = measure(contenders(arguments.units, arguments.batch, arguments.times), arguments.rounds)
    title = (
        f"HyperLSTM: training step, {arguments.units} units, batch {arguments.batch}, {arguments.times} steps"
    )
    report(title, table, arguments.save)


if __name__ == "__main__":
    main()
