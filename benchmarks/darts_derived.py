"""One step of the derived network, training from scratch: `uv run python -m benchmarks.darts_derived`.

darts_v2, 20 cells, 36 channels, auxiliary head at 0.4, no drop path, batch 8, 3x32x32, float32; a step is
forward, backward, clipping and SGD. "plain" computes as the peers do, channel by channel (NCHW); beside it
the same on channels-last memory; "ours" is `machine.fused=true`. For reference only, CPU ms at one
thread on 2026-11-21 (2 vCPU AMD EPYC, torch 2.13): quark0/darts 926, channels-last 745.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import measure, report
from metalearn.darts.config import CellNetworkOptions
from metalearn.darts.derived import CellNetwork
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec

SPEC = TaskSpec("noise", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")
AUXILIARY = 0.4


def contender(shape: argparse.Namespace, fused: bool, layout: torch.memory_format) -> Callable[[], object]:
    """A training that makes its next step at each call."""
    rng, device = generator("noise"), torch.device(shape.device)
    x = torch.randn(shape.batch, 3, 32, 32, generator=rng).to(device).contiguous(memory_format=layout)
    y = torch.randint(10, (shape.batch,), generator=rng).to(device)
    options = CellNetworkOptions("darts_cell", "darts_v2", shape.cells, shape.channels, 3, 4, True, 0.0)
    with seeded("network"):
        network = CellNetwork(options, SPEC).to(device)
    network.fused = fused
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        output = network(x)
        assert output.auxiliary is not None
        loss = F.cross_entropy(output.logits, y) + AUXILIARY * F.cross_entropy(output.auxiliary, y)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        return loss.detach()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--channels", type=int, default=36)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    shape = parser.parse_args()
    contenders = {
        "plain": contender(shape, False, torch.contiguous_format),
        "plain, channels-last": contender(shape, False, torch.channels_last),
        "ours": contender(shape, True, torch.contiguous_format),
    }
    title = (
        f"DARTS derived network step: {shape.cells} cells, C={shape.channels}, batch {shape.batch}, 3x32x32"
    )
    report(title, measure(contenders, shape.rounds), shape.save)


if __name__ == "__main__":
    main()
