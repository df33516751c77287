"""Supernet and derived network: exact counts, mixture, drop path, auxiliary head, shapes."""

import dataclasses

import pytest
import torch

from metalearn.darts.cell import Cell, CellShape, drop_path
from metalearn.darts.config import CellNetworkOptions, SupernetOptions
from metalearn.darts.derived import CellNetwork
from metalearn.darts.edge import MixedEdge
from metalearn.darts.genotype import Edge, Plan
from metalearn.darts.operations import CANDIDATES
from metalearn.darts.space import Mixture
from metalearn.darts.supernet import Supernet
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec
from metalearn.tree import Tree, count, tree_map

CIFAR = TaskSpec("cifar10", "classification", (3, 32, 32), 10, {}, "error", "", "", "", "")
DIGITS = dataclasses.replace(CIFAR, name="digits", input_shape=(1, 8, 8))
PAPER = CellNetworkOptions("darts_cell", "darts_v2", 20, 36, 3, 4, True, 0.2)
SMALL = dataclasses.replace(PAPER, cells=3, channels=4, auxiliary=False)


def softmax(alpha: Tree) -> Mixture:
    return Mixture(tree_map(lambda leaf: leaf.softmax(dim=-1), alpha))


def test_supernet_parameters():
    """Section 7 of the sheet; alpha is not among them."""
    network = Supernet(SupernetOptions("darts_supernet", 8, 16, 3, 4, "darts", 1), CIFAR)
    assert count(network.stem.parameters()) == 1_392
    cells = [45_888, 46_144, 144_000, 137_856, 139_904, 484_608, 460_032, 468_224]
    assert [count(cell.parameters()) for cell in network.cells] == cells
    assert count(network.classifier.parameters()) == 2_570
    assert count(network.parameters()) == 1_930_618
    assert {kind: choice.shape for kind, choice in network.choices.items()} == {
        "normal": (14, 8),
        "reduce": (14, 8),
    }


def test_deep_and_thin_supernet_parameters():
    assert (
        count(Supernet(SupernetOptions("darts_supernet", 20, 6, 3, 4, "darts", 1), CIFAR).parameters())
        == 897_640
    )


@pytest.mark.parametrize(
    ("genotype", "without", "whole"),
    [
        ("darts_v2", 3_349_342, 3_825_768),
        ("darts_v1", 3_169_414, 3_645_840),
        ("nasnet_a", 3_830_950, 4_288_944),
        ("amoebanet_a", 3_145_078, 3_603_072),
    ],
)
def test_derived_network_parameters(genotype, without, whole):
    network = CellNetwork(dataclasses.replace(PAPER, genotype=genotype), CIFAR)
    assert count(network.parameters()) == whole
    plain = {key: leaf for key, leaf in network.named_parameters() if "auxiliary" not in key}
    assert count(plain) == without


def test_mixed_edge_is_the_weighted_sum_of_its_operations():
    edge = MixedEdge(4, 1, CANDIDATES)
    x = torch.randn(3, 4, 8, 8, generator=generator("x"))
    weights = torch.rand(8, generator=generator("weights"))
    outputs = [torch.zeros_like(x)] + [operation(x) for operation in edge.operations.values()]
    torch.testing.assert_close(
        edge(x, weights, None, 0.0, 0.0), torch.einsum("o,obchw->bchw", weights, torch.stack(outputs))
    )


def test_supernet_with_all_weight_on_one_operation_is_that_network(tiny_supernet):
    """Identity or FactorizedReduce everywhere, worked out by hand."""
    network = tiny_supernet(torch.float64)
    x = torch.randn(4, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    sharp = torch.zeros(5, 8, dtype=torch.float64)
    sharp[:, 3] = 60.0
    older = newer = network.stem(x)
    for cell in network.cells:
        nodes = cell.inputs(older, newer)
        edges = [edge.operations["skip_connect"] for edge in cell.edges]
        nodes.append(edges[0](nodes[0]) + edges[1](nodes[1]))
        nodes.append(edges[2](nodes[0]) + edges[3](nodes[1]) + edges[4](nodes[2]))
        older, newer = newer, torch.cat(nodes[2:], dim=1)
    expected = network.classifier(newer.mean((2, 3)))
    torch.testing.assert_close(
        network(x, mixture=softmax({"normal": sharp, "reduce": sharp})).logits, expected
    )


def test_supernet_without_alpha_weighs_all_operations_equally(tiny_supernet):
    network = tiny_supernet(torch.float32)
    x = torch.randn(4, 1, 8, 8, generator=generator("x"))
    flat = {kind: torch.full(choice.shape, 0.7) for kind, choice in network.choices.items()}
    torch.testing.assert_close(network(x).logits, network(x, mixture=softmax(flat)).logits)


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_each_kind_of_cell_has_its_own_alpha(tiny_supernet, kind):
    network = tiny_supernet(torch.float32)
    x = torch.randn(4, 1, 8, 8, generator=generator("x"))
    alpha = {name: torch.zeros(choice.shape) for name, choice in network.choices.items()}
    before = network(x, mixture=softmax(alpha)).logits
    alpha[kind] = torch.randn(alpha[kind].shape, generator=generator("alpha"))
    assert not torch.allclose(network(x, mixture=softmax(alpha)).logits, before)


@pytest.mark.parametrize("genotype", ["darts_v1", "darts_v2", "nasnet_a", "amoebanet_a", "random"])
def test_derived_network_runs_on_small_images(genotype):
    network = CellNetwork(dataclasses.replace(SMALL, genotype=genotype), DIGITS)
    output = network(torch.randn(2, 1, 8, 8))
    assert output.logits.shape == (2, 10)
    assert output.auxiliary is None


def test_random_genotype_follows_the_seed_of_the_builder():
    options = dataclasses.replace(SMALL, genotype="random")
    found = []
    for seed in (0, 0, 1):
        with seeded(seed, "network"):
            found.append(CellNetwork(options, DIGITS).genotype)
    assert found[0] == found[1] != found[2]


def test_auxiliary_head_scores_in_training_only():
    network = CellNetwork(dataclasses.replace(PAPER, cells=3, channels=4), CIFAR)
    x = torch.randn(2, 3, 32, 32)
    auxiliary = network(x).auxiliary
    assert auxiliary is not None
    assert auxiliary.shape == (2, 10)
    assert network.eval()(x).auxiliary is None


def test_auxiliary_head_refuses_small_maps():
    with pytest.raises(UserError, match=r"digits leave 2x2; set network.auxiliary=false"):
        CellNetwork(dataclasses.replace(SMALL, auxiliary=True), DIGITS)


@pytest.mark.parametrize("build", [Supernet, CellNetwork])
def test_other_tasks_are_refused(build):
    options = SMALL if build is CellNetwork else SupernetOptions("darts_supernet", 3, 4, 3, 4, "darts", 1)
    for spec, message in [
        (dataclasses.replace(DIGITS, input_shape=(64,)), "choose a classification task of images"),
        (dataclasses.replace(DIGITS, kind="language_model", input_shape=()), "is a language_model"),
        (dataclasses.replace(DIGITS, input_shape=(1, 10, 10)), "that 4 divides"),
    ]:
        with pytest.raises(UserError, match=message):
            build(options, spec)


def test_drop_path_cuts_whole_examples_and_keeps_the_mean():
    x = torch.ones(20_000, 2, 2, 2)
    with seeded("drop"):
        out = drop_path(x, 0.2)
    rows = out.flatten(1)
    assert (rows == rows[:, :1]).all()
    assert set(rows[:, 0].unique().tolist()) == {0.0, 1.25}
    assert abs(float((rows[:, 0] == 0).float().mean()) - 0.2) < 5 * (0.16 / 20_000) ** 0.5


def test_drop_path_skips_identities_alone(monkeypatch):
    """darts_v2 has its skips on stride 1 in normal cells; on stride 2 they are cut as all others."""
    network = CellNetwork(SMALL, DIGITS)
    calls: list[float] = []
    monkeypatch.setattr("metalearn.darts.cell.drop_path", lambda x, p: calls.append(p) or x)
    x = torch.randn(2, 1, 8, 8)
    network.progress = 0.5
    network(x)
    identities = sum(isinstance(module, torch.nn.Identity) for module in network.modules())
    # 1 normal cell with 2 skips; 2 reductions whose 3 skips leave node 2, so have stride 1
    assert identities == 2 + 2 * 3
    assert calls == [0.1] * (3 * 8 - identities)


def test_drop_path_is_applied_to_a_skip_that_reduces(monkeypatch):
    calls: list[float] = []
    monkeypatch.setattr("metalearn.darts.cell.drop_path", lambda x, p: calls.append(p) or x)
    skips = Plan(((Edge("skip_connect", 0), Edge("skip_connect", 1)),), (2,))
    x = torch.randn(2, 4, 8, 8)
    Cell(skips, CellShape(4, 4, 4, reduction=True, reduction_before=False))(x, x, 0.3)
    assert calls == [0.3, 0.3]
    Cell(skips, CellShape(4, 4, 4, reduction=False, reduction_before=False))(x, x, 0.3)
    assert calls == [0.3, 0.3]


def test_drop_path_grows_with_progress_and_stops_in_evaluation():
    network = CellNetwork(SMALL, DIGITS)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(x).logits, network(x).logits)  # progress 0
    network.progress = 1.0
    assert not torch.equal(network(x).logits, network(x).logits)
    network.eval()
    torch.testing.assert_close(network(x).logits, network(x).logits, rtol=0, atol=0)


def test_supernet_cuts_all_operations_but_identities_in_training(tiny_supernet, monkeypatch):
    """Sheet, section 4.1: 3 cells of 5 edges of 7 operations; of a reduction, 4 of 5 skips are strided."""
    network = tiny_supernet(torch.float32)
    calls: list[float] = []
    monkeypatch.setattr("metalearn.darts.edge.drop_path", lambda x, p: calls.append(p) or x)
    network.drop_path = 0.3
    x = torch.randn(4, 1, 8, 8, generator=generator("x"))
    network(x)
    assert calls == [0.3] * (3 * 5 * 7 - (5 + 1 + 1))
    network.eval()(x)
    assert len(calls) == 3 * 5 * 7 - 7


def test_supernet_drops_the_outputs_of_identities_alone(tiny_supernet, monkeypatch):
    """Of a network of skips; one of convolutions stays as it is. 5 + 1 + 1 identities in all."""
    network = tiny_supernet(torch.float32)
    dropout, calls = torch.nn.functional.dropout, []
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p: calls.append(p) or dropout(x, p))
    x = torch.randn(4, 1, 8, 8, generator=generator("x"))
    for place, moves in [(3, True), (4, False)]:
        weights = {kind: torch.zeros(5, 8) for kind in network.choices}
        for leaf in weights.values():
            leaf[:, place] = 1.0
        network.skip_dropout = 0.0
        plain = network(x, mixture=Mixture(weights)).logits
        network.skip_dropout = 0.5
        assert torch.equal(network(x, mixture=Mixture(weights)).logits, plain) != moves
    assert calls == [0.5] * 2 * (5 + 1 + 1)
