"""A part of the channels through the operations: one edge by hand, counts, slopes, what is refused."""

import pytest
import torch
from torch.nn.functional import max_pool2d

from metalearn.darts.edge import PartialEdge, shuffle_channels
from metalearn.darts.operations import CANDIDATES
from metalearn.darts.space import Mixture
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.tree import count


@pytest.fixture
def x():
    return torch.randn(3, 8, 8, 8, generator=generator("x"), dtype=torch.float64)


def test_channels_are_shuffled_across_groups():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert shuffle_channels(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle_channels(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_quarter_passes_the_operations_and_the_rest_goes_by(stride, x):
    """Of 8 channels the first two; the output's channels are 0, 2, 4, 6, 1, 3, 5, 7 of the two joined."""
    edge = PartialEdge(8, stride, CANDIDATES, 4).double()
    weights = torch.rand(8, generator=generator("weights"), dtype=torch.float64)
    outputs = [operation(x[:, :2]) for operation in edge.edge.operations.values()]
    mixed = torch.einsum("o,obchw->bchw", weights[1:], torch.stack(outputs))
    rest = x[:, 2:] if stride == 1 else max_pool2d(x[:, 2:], 2)
    joined = torch.cat([mixed, weights.sum() * rest], dim=1)
    found = edge(x, weights, None, 0.0, 0.0)
    torch.testing.assert_close(found, joined[:, [0, 2, 4, 6, 1, 3, 5, 7]])


@pytest.mark.parametrize("stride", [1, 2])
def test_none_lets_the_rest_go_by(stride, x):
    edge = PartialEdge(8, stride, CANDIDATES, 4).double()
    running = [True] + [False] * 7
    weights = torch.tensor([0.5] + [0.0] * 7, dtype=torch.float64)
    assert edge.runs(running)
    assert not edge.runs([False] * 8)
    found = edge(x, weights, running, 0.0, 0.0)
    torch.testing.assert_close(found, edge(x, weights, None, 0.0, 0.0))
    assert not found[:, [0, 4]].any()
    rest = x if stride == 1 else max_pool2d(x, 2)
    torch.testing.assert_close(found[:, [1, 2, 3, 5, 6, 7]], 0.5 * rest[:, [4 - 2, 4, 6, 3, 5, 7]])


def test_operations_have_a_part_of_the_channels(tiny_supernet):
    """All else is as wide as before: 8 channels in cell 0, 16 and 32 in the reductions."""
    whole, part = (tiny_supernet(torch.float32, channels=8, partial=parts) for parts in (1, 4))
    per_edge = {width: _parameters(width) for width in (2, 4, 8, 16, 32)}
    reduced = {width: _parameters(width) + width**2 for width in (4, 8, 16, 32)}  # skips that halve
    edges = 5 * (per_edge[8] - per_edge[2])
    for width in (16, 32):
        edges += 4 * (reduced[width] - reduced[width // 4]) + per_edge[width] - per_edge[width // 4]
    assert count(whole.parameters()) - count(part.parameters()) == edges


def _parameters(width: int) -> int:
    """Of separable 3x3 and 5x5 (twice) and dilated 3x3 and 5x5, without scales (sheet, section 7)."""
    return sum(2 * (width * k**2 + width**2) for k in (3, 5)) + sum(width * k**2 + width**2 for k in (3, 5))


def test_supernet_has_the_slope_of_central_differences(tiny_supernet):
    """In weights whose edges sum to different shares."""
    network = tiny_supernet(torch.float64, channels=8, partial=4)
    x = torch.randn(4, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    probe = torch.randn(4, 3, generator=generator("probe"), dtype=torch.float64)
    shapes = {kind: choice.shape for kind, choice in network.choices.items()}
    rng = generator("weights")
    weights, direction = (
        {kind: torch.rand(shape, generator=rng, dtype=torch.float64) for kind, shape in shapes.items()}
        for _ in range(2)
    )

    def score(move: torch.Tensor | float) -> torch.Tensor:
        moved = {kind: weights[kind] + move * direction[kind] for kind in weights}
        return (network(x, mixture=Mixture(moved)).logits * probe).sum()

    move = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(score(move), move)
    torch.testing.assert_close(slope, (score(1e-6) - score(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-9)


def test_channels_that_have_no_even_part_are_refused(tiny_supernet):
    with pytest.raises(UserError, match=r"4 channels have no even part of one in 4; .* a multiple of 8"):
        tiny_supernet(torch.float32, channels=4, partial=4)
