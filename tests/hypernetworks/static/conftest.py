"""Options of generators, small, and a module to hypernetize."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from metalearn.hypernetworks.static.config import (
    ChunkedOptions,
    CoordinateOptions,
    GeneratorOptions,
    LayerEmbeddingOptions,
    StartOptions,
)

START = {"initial": "hyperfan_in", "gain": 2.0, "deviation": 0.01, "vectors": 0.01, "shared": 0.1}
BLOCKS = {"embedding": 3, "hidden": 2, "block": 2, "undivided": "shrink", "rank": None}
CHUNKS = {
    "size": 24, "embedding": 3, "layer_embedding": 0, "condition_embedding": 2, "hidden": [4], "rank": None,
}  # fmt: skip


@pytest.fixture(scope="session")
def generator_options() -> Callable[..., GeneratorOptions]:
    """Options of a generator of a kind; fields of its group, of `start` and `conditions` by name."""

    def make(kind: str = "layer_embedding", conditions: int = 1, **changes: object) -> GeneratorOptions:
        def group(defaults: dict[str, object], mine: bool) -> dict[str, object]:
            return defaults | {key: changes.pop(key) for key in list(changes) if mine and key in defaults}

        start = StartOptions(**group(START, True))  # type: ignore[arg-type]
        blocks = LayerEmbeddingOptions(**group(BLOCKS, kind == "layer_embedding"))  # type: ignore[arg-type]
        chunks = ChunkedOptions(**group(CHUNKS, kind == "chunked"))  # type: ignore[arg-type]
        places = CoordinateOptions(**group({"hidden": [25, 25]}, kind == "coordinate"))  # type: ignore[arg-type]
        assert not changes
        return GeneratorOptions(kind, conditions, start, blocks, chunks, places)

    return make


@pytest.fixture
def conv_net() -> nn.Sequential:
    """Convolution, BatchNorm, tanh, convolution, linear: smooth, in float64. Takes [batch 2 4 4]."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return net.double()
