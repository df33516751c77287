"""One training step of a hypernetwork of WRN-40-1, and generation alone: `-m benchmarks.static_hypernetwork`.

36 kernels from embeddings of 64, batch 16, 3x32x32, float32; a step is forward, backward and Adam, generation
is forward and backward to embeddings and maps. "plain" has weights of its own; "chunk by chunk" generates as
g1910/HyperNetworks does, one pair of small products for each 16x16 block, put together by `cat`, and computes
NCHW as that does; "ours" is `machine.fused=true`. For reference only, CPU ms at one thread on 2026-11-21
(2 vCPU AMD EPYC, torch 2.13): g1910's own step 169, its generation 35.9.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import measure, report
from metalearn.hypernetworks.static.config import (
    GeneratorOptions,
    LayerEmbeddingOptions,
    StartOptions,
    WideResnetOptions,
)
from metalearn.hypernetworks.static.generator import Condition, Generator, Target
from metalearn.hypernetworks.static.hypernetize import Hypernetwork, build, chosen, hypernetize
from metalearn.hypernetworks.static.wide_resnet import WideResnet
from metalearn.network import Output
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec
from metalearn.tree import Tree

SPEC = TaskSpec("noise", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")
BLOCK, EMBEDDING, WINDOW = 16, 64, 3
OPTIONS = GeneratorOptions(
    "layer_embedding",
    1,
    StartOptions("he_blocks", 2.0, 0.01, 0.01),
    LayerEmbeddingOptions(EMBEDDING, EMBEDDING, BLOCK, "refuse", None),
)
GENERATED = chosen(["convolutions"], ["conv1.weight", "*.shortcut.weight"])


class ChunkByChunk(Generator):
    """g1910's `HyperNetwork` and `Embedding` (hypernetwork_modules.py, primary_net.py)."""

    def __init__(self, targets: Sequence[Target]) -> None:
        super().__init__()
        self.conditions, self.targets = 1, tuple(targets)
        kernel = BLOCK * WINDOW * WINDOW
        self.w1, self.b1 = _normal(EMBEDDING, kernel), _normal(kernel)
        self.w2, self.b2 = _normal(EMBEDDING, BLOCK * EMBEDDING), _normal(BLOCK * EMBEDDING)
        counts = [target.shape[0] * target.shape[1] // BLOCK**2 for target in targets]
        self.embeddings = nn.ModuleList(
            nn.ParameterList(_normal(EMBEDDING) for _ in range(count)) for count in counts
        )

    def forward(self, condition: Condition = None) -> Tree:  # noqa: ARG002
        return {
            target.name: self._kernel(embeddings, target.shape[1] // BLOCK)  # type: ignore[arg-type]
            for target, embeddings in zip(self.targets, self.embeddings, strict=True)
        }

    def _kernel(self, embeddings: Sequence[Tensor], columns: int) -> Tensor:
        blocks = [self._block(z) for z in embeddings]
        rows = [torch.cat(blocks[at : at + columns], dim=1) for at in range(0, len(blocks), columns)]
        return torch.cat(rows, dim=0)

    def _block(self, z: Tensor) -> Tensor:
        h_in = (torch.matmul(z, self.w2) + self.b2).view(BLOCK, EMBEDDING)
        h_final = torch.matmul(h_in, self.w1) + self.b1
        return h_final.view(BLOCK, BLOCK, WINDOW, WINDOW)


def _normal(*shape: int) -> nn.Parameter:
    """Small: his are so large that training needs his BatchNorm to begin at all; time is the same."""
    return nn.Parameter(0.1 * torch.randn(*shape))


def main_network(shape: argparse.Namespace, fused: bool) -> WideResnet:
    """WRN-40-1, the variant whose counts are nearest to the paper's."""
    with seeded("network"):
        network = WideResnet(
            WideResnetOptions("wide_resnet", shape.depth, shape.factor, "zero_pad", True), SPEC
        )
    network.fused = fused
    return network.to(shape.device)


def hypernetwork(shape: argparse.Namespace, fused: bool, ours: bool = True) -> Hypernetwork:
    """The same with generated kernels."""
    with seeded("generator"):
        factory = (lambda targets: build(OPTIONS, targets)) if ours else ChunkByChunk
        return hypernetize(main_network(shape, fused), factory, GENERATED)


def training(shape: argparse.Namespace, network: nn.Module) -> Callable[[], object]:
    """A training that makes its next step at each call."""
    rng = generator("noise")
    x = torch.randn(shape.batch, 3, 32, 32, generator=rng).to(shape.device)
    y = torch.randint(10, (shape.batch,), generator=rng).to(shape.device)
    optimizer = torch.optim.Adam(network.parameters(), 0.002, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        output: Output = network(x)
        loss = F.cross_entropy(output.logits, y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def generation(network: Hypernetwork) -> Callable[[], object]:
    """All kernels, and the gradient of a sum over them that has no symmetry."""
    weights = network.weights()
    grads = [torch.randn(leaf.shape, generator=generator(name)).to(leaf) for name, leaf in weights.items()]

    def step() -> None:
        network.zero_grad(set_to_none=True)
        torch.autograd.backward(list(network.weights().values()), grads)

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--depth", type=int, default=40)
    parser.add_argument("--factor", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    shape = parser.parse_args()
    size = f"WRN-{shape.depth}-{shape.factor}"
    steps = {
        "plain, NCHW": training(shape, main_network(shape, False)),
        "plain, channels-last": training(shape, main_network(shape, True)),
        "chunk by chunk (g1910)": training(shape, hypernetwork(shape, False, ours=False)),
        "ours, NCHW": training(shape, hypernetwork(shape, False)),
        "ours": training(shape, hypernetwork(shape, True)),
    }
    title = f"static hypernetwork step: of {size}, batch {shape.batch}, 3x32x32"
    report(title, measure(steps, shape.rounds), shape.save)
    alone = {
        "chunk by chunk (g1910)": generation(hypernetwork(shape, False, ours=False)),
        "ours": generation(hypernetwork(shape, True)),
    }
    report(f"static hypernetwork generation: of {size}", measure(alone, 3 * shape.rounds), shape.save)


if __name__ == "__main__":
    main()
