"""Discretisation with k = 1 by hand-computed cases, and the format of files."""

import collections
import json

import pytest
import torch

from metalearn.darts import genotype as cnn
from metalearn.darts.genotype import Edge
from metalearn.darts.recurrent.genotype import (
    ACTIVATIONS,
    FORMAT,
    RecurrentGenotype,
    discretise,
    encode,
    load,
    random_genotype,
)
from metalearn.registry import UserError
from metalearn.rng import generator

NONE, TANH, RELU, SIGMOID, IDENTITY = range(5)
PUBLISHED = {  # the sheet's section 6
    "darts_rnn_v1": "relu0 relu1 tanh2 relu3 relu4 identity1 relu5 relu1",
    "darts_rnn_v2": "sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5",
    "enas_rnn": "tanh0 tanh1 relu1 tanh3 tanh3 relu3 relu4 relu7 relu8 relu8 relu8",
}


def strengths(rows, **peaks):
    """Softmax of zeros, but for `e<edge>={activation: value}`."""
    table = torch.zeros(rows, 5)
    for name, row in peaks.items():
        for activation, value in row.items():
            table[int(name[1:]), activation] = value
    return table.softmax(dim=-1)


def found(table):
    return [tuple(edge) for edge in discretise(table).nodes]


def test_equal_strengths_keep_the_first_activation_and_the_first_node():
    assert found(strengths(6)) == [("tanh", 0)] * 3
    assert discretise(strengths(6)).concat == (1, 2, 3)


def test_the_strongest_activation_of_the_strongest_edge():
    table = strengths(6, e0={SIGMOID: 0.1}, e2={RELU: 0.5}, e3={RELU: 0.9}, e5={IDENTITY: 1.0, TANH: 0.2})
    assert found(table) == [("sigmoid", 0), ("relu", 1), ("identity", 2)]


def test_none_is_never_chosen_but_takes_strength_from_its_edge():
    """Edge 1 has the larger logit, its softmax weight 3/(3 + 10 + 3) = 0.19 is below 2/(2 + 4) = 0.33."""
    table = torch.zeros(3, 5)
    table[1] = torch.tensor([10.0, 3.0, 1.0, 1.0, 1.0]).log()
    table[2] = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).log()
    assert found(table.softmax(dim=-1)) == [("tanh", 0), ("relu", 1)]
    table[:] = strengths(3, e0={NONE: 9}, e1={NONE: 9}, e2={NONE: 9})
    assert found(table) == [("tanh", 0), ("tanh", 0)]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_genotypes_are_the_sheet_s(name):
    genotype = load(name)
    assert " ".join(f"{operation}{source}" for operation, source in genotype.nodes) == PUBLISHED[name]
    assert genotype.concat == ((2, 5, 6, 9, 10, 11) if name == "enas_rnn" else tuple(range(1, 9)))
    assert RecurrentGenotype.from_json(genotype.to_json()) == genotype


def test_identities_are_the_skips():
    assert load("darts_rnn_v2").skips() == {"cell": 1}
    assert load("enas_rnn").skips() == {"cell": 0}


def test_discretise_undoes_encode():
    for name in ("darts_rnn_v1", "darts_rnn_v2"):
        mask = encode(load(name))
        assert mask.shape == (36, 5)
        assert mask.sum() == 8
        assert discretise(mask.double()) == load(name)


def test_random_genotypes_are_uniform_over_activations_and_predecessors():
    rng = generator("random")
    counts = collections.Counter(random_genotype(2, rng).nodes[1] for _ in range(4000))
    assert set(counts) == {Edge(name, source) for name in ACTIVATIONS[1:] for source in (0, 1)}
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())
    assert random_genotype(8, generator("a")) == random_genotype(8, generator("a"))


def test_a_file_of_the_other_space_is_refused_by_name():
    with pytest.raises(UserError, match=r"darts_v2.*a convolutional cell, for network=darts_cell"):
        load("darts_v2")
    with pytest.raises(UserError, match=r"darts_rnn_v2.*a recurrent cell, for network=darts_recurrent_cell"):
        cnn.load("darts_rnn_v2")
    with pytest.raises(UserError, match="choose one of: darts_rnn_v1, darts_rnn_v2, enas_rnn"):
        load("darts_rnn_v")
    assert cnn.published() == ["amoebanet_a", "darts_v1", "darts_v2", "nasnet_a"]
    assert cnn.published(FORMAT) == ["darts_rnn_v1", "darts_rnn_v2", "enas_rnn"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a genotype of a recurrent cell"),
        ({"version": 2}, "version 2, this release reads version 1"),
        ({"nodes": 3}, "must be a list of"),
        ({"nodes": [["tanh"]]}, "must be .activation, source."),
        ({"nodes": [["tahn", 0]]}, "no activation 'tahn'; choose one of: tanh"),
        ({"nodes": [["none", 0]]}, "no activation 'none'"),
        ({"nodes": [["tanh", 1]]}, "node 1 comes from 1, must be from 0 to 0"),
        ({"concat": [0]}, "one or more different nodes from 1 to 8"),
        ({"concat": [1, 1]}, "one or more different nodes"),
        ({"concat": []}, "one or more different nodes"),
        ({"concat": "1"}, "must be a list of node numbers"),
    ],
)
def test_faulty_files_are_refused(change, message):
    document = json.loads(load("darts_rnn_v1").to_json()) | change
    with pytest.raises(UserError, match=f"cell.json: .*{message}"):
        RecurrentGenotype.from_json(json.dumps(document), origin="cell.json")


def test_what_is_no_json_is_refused():
    with pytest.raises(UserError, match="not JSON"):
        RecurrentGenotype.from_json("{", origin="cell.json")
