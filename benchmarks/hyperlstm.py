"""A training step of a character model: our HyperLSTM and LSTM beside labml-nn's HyperLSTM and torch's LSTM.

256 or 1000 units, batch 32, 35 steps in time, 50 symbols; hyper cell of 128 units, embeddings of 4, layer
normalisation. A step is forward, backward, clipping and fused Adam. Ours also as elementary operations,
which can be differentiated twice, and fused where there is no C compiler.
"""

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import measure, report
from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.lstm import LSTM
from metalearn.hypernetworks.recurrent import Stack
from metalearn.kernels import Built
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
    with seeded("benchmark"):
        ours = {name: training_step(network, units, x, y) for name, network in our_networks(units).items()}
        name, without = "HyperLSTM, fused, no compiler", our_networks(units)["metalearn HyperLSTM, fused"]
        ours[f"metalearn {name}"] = without_compiler(training_step(without, units, x, y))
        peers = {
            "labml-nn HyperLSTM": LabmlHyperLSTM(SYMBOLS, units, HYPER_UNITS, EMBEDDING, 1),
            "torch.nn.LSTM (limit)": nn.LSTM(SYMBOLS, units),
        }
        return ours | {name: training_step(network, units, one_hot, y) for name, network in peers.items()}


def our_networks(units: int) -> dict[str, Stack]:
    """Each in both forms."""
    norm, plain = (CellOptions(layer_norm, 1.0, 1.0, "paper") for layer_norm in (True, False))
    hyper = HyperOptions(HYPER_UNITS, EMBEDDING, True, 1.0, "current")
    found: dict[str, Stack] = {}
    for form in ("fused", "plain"):
        stacks: dict[str, Stack] = {
            f"metalearn HyperLSTM, {form}": HyperLSTM(SYMBOLS, units, norm, hyper),
            f"metalearn LSTM, layer norm, {form}": LSTM(SYMBOLS, units, norm),
            f"metalearn LSTM, {form}": LSTM(SYMBOLS, units, plain),
        }
        for stack in stacks.values():
            stack.fused = form == "fused"
        found |= stacks
    return found


def without_compiler(step: Callable[[], object]) -> Callable[[], object]:
    """The step as it runs where kernels cannot be built."""
    nothing = Built(None, "a benchmark without a compiler")

    def patched() -> None:
        with patch("metalearn.hypernetworks.fused.kernel.build", lambda *_: nothing):
            step()

    return patched


def operator_calls(step: Callable[[], object]) -> int:
    """Operators that the profiler sees in a step, nested ones too."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=256, choices=(256, 1000))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--times", type=int, default=35)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="write the table to benchmarks/results/")
    arguments = parser.parse_args()
    steps = contenders(arguments.units, arguments.batch, arguments.times)
    table = measure(steps, arguments.rounds)
    table = [row._replace(name=f"{row.name} ({operator_calls(steps[row.name])} calls)") for row in table]
    size = "" if arguments.units == 256 else f" {arguments.units}"
    title = (
        f"HyperLSTM{size}: training step, {arguments.units} units, batch {arguments.batch}, "
        f"{arguments.times} steps; in brackets operator calls a step"
    )
    report(title, table, arguments.save)


if __name__ == "__main__":
    main()
