"""Spaces other than that of DARTS: what stands where, what is drawn, and that it is searched and derived."""

import collections
import itertools

import pytest
import torch

from metalearn.darts.config import CellNetworkOptions
from metalearn.darts.derived import CellNetwork
from metalearn.darts.genotype import Edge, Genotype, load
from metalearn.darts.operations import CANDIDATES, Noise, operation
from metalearn.darts.space import Mixture
from metalearn.darts.spaces import S1, choices, sample
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec

DIGITS = TaskSpec("digits", "classification", (1, 8, 8), 10, {}, "error", "", "", "", "")
SPACES = ["darts", "fair", "s1", "s2", "s3", "s4"]


def nodes(space):
    return 4 if space == "s1" else 2


@pytest.mark.parametrize(
    ("space", "columns"),
    [
        ("fair", " ".join(CANDIDATES).removeprefix("none ")),
        ("s2", "skip_connect sep_conv_3x3"),
        ("s3", "none skip_connect sep_conv_3x3"),
        ("s4", "noise sep_conv_3x3"),
    ],
)
def test_operations_of_a_space(space, columns):
    for choice in choices(space, 4).values():
        assert " ".join(choice.operations) == columns
        assert choice.allowed.shape == (14, len(columns.split()))
        assert choice.allowed.all()


def test_s1_has_two_operations_of_its_own_on_each_edge():
    """A few of its edges, (from, to)."""
    found = choices("s1", 4)
    places = [(source, target) for target in range(2, 6) for source in range(target)]
    for kind, edge, pair in [
        ("normal", (0, 2), {"skip_connect", "dil_conv_3x3"}),
        ("normal", (0, 4), {"max_pool_3x3", "skip_connect"}),
        ("normal", (4, 5), {"dil_conv_3x3", "dil_conv_5x5"}),
        ("reduce", (1, 2), {"max_pool_3x3", "dil_conv_3x3"}),
        ("reduce", (1, 4), {"max_pool_3x3", "sep_conv_3x3"}),
        ("reduce", (3, 5), {"skip_connect", "dil_conv_5x5"}),
    ]:
        row = found[kind].allowed[places.index(edge)].tolist()
        assert {name for name, used in zip(found[kind].operations, row, strict=True) if used} == pair
    for kind, pairs in S1.items():
        assert found[kind].allowed.sum(1).tolist() == [2] * 14
        assert len(pairs) == 14
    pools = [sum("max_pool_3x3" in pair for pair in S1[kind]) for kind in ("normal", "reduce")]
    assert pools == [2, 8]


def test_s1_of_other_cells_is_refused():
    with pytest.raises(UserError, match=r"set network.nodes=4"):
        choices("s1", 3)


@pytest.mark.parametrize("space", SPACES)
def test_a_genotype_is_drawn_encoded_and_read_back(space, tiny_supernet):
    network = tiny_supernet(torch.float64, space=space, nodes=nodes(space))
    for index in range(20):
        genotype = network.sample(generator("sample", index))
        masks = network.encode(genotype)
        assert all((masks[kind] <= network.choices[kind].allowed).all() for kind in masks)
        assert all(int(mask.sum()) == 2 * nodes(space) for mask in masks.values())
        found = network.discretise({kind: mask.double() for kind, mask in masks.items()})
        assert _sorted(found) == _sorted(genotype)
        assert Genotype.from_json(genotype.to_json()) == genotype


def _sorted(genotype):
    """A node's edges in the order of their sources: equal strengths keep no other."""
    plans = (genotype.normal, genotype.reduce)
    return [[sorted(node, key=lambda edge: edge.source) for node in plan.nodes] for plan in plans]


def test_cells_are_drawn_uniformly():
    """Of a node with edges of 2, 1 and 3 operations other than none: 2 + 6 + 3 = 11 pairs."""
    choice = choices("darts", 2)["normal"]
    allowed = torch.zeros(5, 8, dtype=torch.bool)
    allowed[:, 0] = True
    for edge, operations in enumerate([[3], [3], [1, 2], [4], [5, 6, 7]]):
        allowed[edge, operations] = True
    choice = choice._replace(allowed=allowed)
    rng, number = generator("draws"), 4400
    drawn = collections.Counter(sample(choice, rng).nodes[1] for _ in range(number))
    names = [[CANDIDATES[place] for place in group] for group in ([1, 2], [4], [5, 6, 7])]
    edges = [[Edge(name, source) for name in group] for source, group in enumerate(names)]
    every = [pair for both in itertools.combinations(edges, 2) for pair in itertools.product(*both)]
    assert set(drawn) == set(every)
    chi_square = sum((drawn[pair] - number / 11) ** 2 / (number / 11) for pair in every)
    assert chi_square < 29.6  # 10 degrees of freedom, 0.1 %


def test_a_node_without_two_edges_is_refused():
    choice = choices("darts", 1)["normal"]
    allowed = choice.allowed.clone()
    allowed[0, 1:] = False
    with pytest.raises(UserError, match="node 2 has fewer than 2 edges with an operation"):
        sample(choice._replace(allowed=allowed), generator("draw"))


@pytest.mark.parametrize("space", SPACES)
def test_a_supernet_builds_what_is_allowed_and_scores(space, tiny_supernet):
    network = tiny_supernet(torch.float64, space=space, nodes=nodes(space))
    for cell in network.cells:
        choice = network.choices["reduce" if cell.reduction else "normal"]
        for edge, row in zip(cell.edges, choice.allowed.tolist(), strict=True):
            names = [name for name, used in zip(choice.operations, row, strict=True) if used]
            assert list(edge.operations) == [name for name in names if name != "none"]
    x = torch.randn(4, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    even = {kind: c.allowed / c.allowed.sum(1, keepdim=True) for kind, c in network.choices.items()}
    with seeded("noise"):
        plain = network(x).logits
    with seeded("noise"):
        found = network(x, mixture=Mixture({kind: leaf.double() for kind, leaf in even.items()})).logits
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
def test_fused_or_not_a_space_is_the_same_function(space, tiny_supernet):
    """Whether it has a fused form or none."""
    network = tiny_supernet(torch.float64, space=space, nodes=nodes(space))
    x = torch.randn(4, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    weights = {
        kind: torch.rand(choice.shape, generator=generator(kind), dtype=torch.float64) * choice.allowed
        for kind, choice in network.choices.items()
    }
    logits = []
    for fused in (False, True):
        network.fused = fused
        with seeded("noise"):
            logits.append(network(x, mixture=Mixture(weights)).logits)
    torch.testing.assert_close(*logits)


def test_a_narrowed_space_stays_within_it(tiny_supernet):
    network = tiny_supernet(torch.float64, space="s3")
    allowed = {kind: torch.ones(choice.shape, dtype=torch.bool) for kind, choice in network.choices.items()}
    allowed["normal"][0, 1] = False
    smaller = network.restricted(4, allowed)
    assert smaller.choices["normal"].operations == ("none", "skip_connect", "sep_conv_3x3")
    assert list(smaller.cells[0].edges[0].operations) == ["sep_conv_3x3"]
    assert list(smaller.cells[0].edges[1].operations) == ["skip_connect", "sep_conv_3x3"]


def test_a_genotype_of_another_space_is_refused(tiny_supernet):
    with pytest.raises(UserError, match="'skip_connect' is not in this space, which has: noise, sep_"):
        tiny_supernet(torch.float32, space="s4", nodes=4).encode(load("darts_v2"))


def test_none_in_another_column_than_the_first_is_not_chosen(tiny_supernet):
    """S2 has no none: its first column counts."""
    network = tiny_supernet(torch.float32, space="s2")
    strengths = {kind: torch.tensor([[0.9, 0.1]] * 5) for kind in network.choices}
    assert network.discretise(strengths).skips() == {"normal": 4, "reduce": 4}
    third = tiny_supernet(torch.float32, space="s3")
    strengths = {kind: torch.tensor([[0.9, 0.03, 0.07]] * 5) for kind in third.choices}
    assert third.discretise(strengths).skips() == {"normal": 0, "reduce": 0}


@pytest.mark.parametrize("stride", [1, 2])
def test_noise_is_standard_normal_and_not_of_its_input(stride):
    x = torch.full((20, 5, 20, 20), 7.0)
    module = operation("noise", 5, stride)
    with seeded("noise"):
        y = module(x)
    with seeded("noise"):
        assert torch.equal(module(-x), y)
    assert y.shape == (20, 5, 20 // stride, 20 // stride)
    assert abs(float(y.mean())) < 4 / y.numel() ** 0.5
    assert abs(float(y.var()) - 1) < 4 * (2 / y.numel()) ** 0.5
    assert not torch.equal(module(x), y)


def test_a_cell_with_noise_is_derived(tiny_supernet, tmp_path):
    network = tiny_supernet(torch.float32, space="s4")
    strengths = {kind: torch.tensor([[0.9, 0.1], [0.2, 0.8]] + [[0.5, 0.5]] * 3) for kind in network.choices}
    path = tmp_path / "genotype.json"
    path.write_text(network.discretise(strengths).to_json())
    options = CellNetworkOptions("darts_cell", str(path), 3, 4, 3, 2, False, 0.0)
    derived = CellNetwork(options, DIGITS)
    assert sum(isinstance(module, Noise) for module in derived.modules()) == 3 * 3
    assert derived(torch.randn(2, 1, 8, 8)).logits.shape == (2, 10)
