"""Discretisation by hand-computed cases, random cells, and the file format with its possible faults."""

import collections
import json
import math

import pytest
import torch

from metalearn.darts.genotype import (
    PUBLISHED,
    Edge,
    Genotype,
    Plan,
    discretise,
    load,
    published,
    random_genotype,
)
from metalearn.darts.operations import CANDIDATES
from metalearn.registry import UserError
from metalearn.rng import generator

NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


def alpha(rows, **peaks):
    """Zeros, but for `e<edge>={operation: value}`."""
    table = torch.zeros(rows, 8)
    for name, row in peaks.items():
        for operation, value in row.items():
            table[int(name[1:]), operation] = value
    return table


def normal_of(table):
    return discretise(table.softmax(dim=-1), torch.zeros_like(table)).normal


def test_equal_alphas_keep_the_first_operation_and_the_first_nodes():
    plan = normal_of(torch.zeros(14, 8))
    assert plan.nodes == ((Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1)),) * 4
    assert plan.concat == (2, 3, 4, 5)


def test_stronger_edge_comes_first():
    plan = normal_of(alpha(2, e0={SKIP: 0.5}, e1={DIL5: 1.0}))
    assert plan.nodes == ((Edge("dil_conv_5x5", 1), Edge("skip_connect", 0)),)


def test_a_node_keeps_the_two_strongest_of_its_edges():
    """Edges 2, 3, 4 go into node 3, from nodes 0, 1, 2."""
    plan = normal_of(alpha(5, e2={SEP3: 0.1}, e3={SEP5: 0.2}, e4={AVG: 0.3}))
    assert plan.nodes[1] == (Edge("avg_pool_3x3", 2), Edge("sep_conv_5x5", 1))


def test_none_is_never_chosen_and_does_not_make_an_edge_strong():
    """With a large weight for none, all other weights of the edge are small."""
    plan = normal_of(alpha(5, e2={NONE: 5.0, SEP3: 1.0}, e3={SEP5: 0.2}, e4={AVG: 0.1}))
    assert plan.nodes[1] == (Edge("sep_conv_5x5", 1), Edge("avg_pool_3x3", 2))


def test_edges_are_ranked_by_softmax_and_not_by_logit():
    """Pitfall 10: logit 2 beside 7 zeros is e^2 / (e^2 + 7) = 0.514; 2.5 beside seven 2.4 is 0.136."""
    crowded = dict.fromkeys(range(8), 2.4) | {DIL3: 2.5}
    table = alpha(5, e2=crowded, e3={SKIP: 2.0}, e4={MAX: 1.0})
    assert math.isclose(float(table.softmax(-1)[2, DIL3]), 0.1364, abs_tol=1e-4)
    assert normal_of(table).nodes[1] == (Edge("skip_connect", 1), Edge("max_pool_3x3", 2))


def test_ties_keep_the_smaller_index():
    plan = normal_of(alpha(5, e2={SEP3: 1.0}, e3={SEP3: 1.0}, e4={SEP3: 1.0, DIL3: 1.0}))
    assert plan.nodes[1] == (Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1))
    assert normal_of(alpha(2, e0={DIL3: 1.0, SEP5: 1.0})).nodes[0][0] == Edge("sep_conv_5x5", 0)


def test_normal_and_reduce_are_not_mixed_up():
    found = discretise(alpha(2, e0={SEP3: 1.0}), alpha(2, e0={DIL3: 1.0}))
    assert found.normal.nodes[0][0].operation == "sep_conv_3x3"
    assert found.reduce.nodes[0][0].operation == "dil_conv_3x3"


def test_random_genotypes_are_uniform_with_distinct_predecessors():
    rng, operations, pairs = generator("random"), collections.Counter(), collections.Counter()
    for _ in range(700):
        plan = random_genotype(4, rng).normal
        operations.update(edge.operation for node in plan.nodes for edge in node)
        pairs[tuple(edge.source for edge in plan.nodes[1])] += 1
    assert set(operations) == set(CANDIDATES) - {"none"}
    assert all(abs(number - 800) < 5 * math.sqrt(800) for number in operations.values())
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}
    assert all(abs(number - 700 / 3) < 5 * math.sqrt(700 / 3) for number in pairs.values())


def test_a_random_genotype_is_a_function_of_its_seed():
    assert random_genotype(4, generator(1)) == random_genotype(4, generator(1))
    assert random_genotype(4, generator(1)) != random_genotype(4, generator(2))


def test_published_genotypes():
    assert published() == ["amoebanet_a", "darts_v1", "darts_v2", "nasnet_a"]
    assert load("darts_v2").normal.nodes[3] == (Edge("skip_connect", 0), Edge("dil_conv_3x3", 2))
    assert load("darts_v1").reduce.nodes[3] == (Edge("skip_connect", 2), Edge("avg_pool_3x3", 0))
    assert load("nasnet_a").reduce.concat == (4, 5, 6)
    assert load("amoebanet_a").reduce.nodes[4][0] == Edge("conv_7x1_1x7", 0)
    assert load("darts_v2").normal.count("skip_connect") == 2


@pytest.mark.parametrize("name", published())
def test_published_files_are_what_we_write(name):
    assert load(name).to_json() == (PUBLISHED / f"{name}.json").read_text(encoding="utf-8")


def test_json_round_trip(tmp_path):
    found = random_genotype(3, generator("trip"))
    path = tmp_path / "genotype.json"
    path.write_text(found.to_json())
    assert load(str(path)) == found
    assert json.loads(found.to_json())["version"] == 1


def test_an_unknown_name_lists_the_right_ones():
    with pytest.raises(
        UserError, match=r"no 'darts_v3' here; choose one of: darts_v[12], darts_v[12], .*random"
    ):
        load("darts_v3")
    with pytest.raises(UserError, match=r"no 'nowhere\.json' here"):
        load("nowhere.json")


def changed(key, value):
    document = json.loads(load("darts_v2").to_json())
    at = document
    *path, last = key
    for part in path:
        at = at[part]
    at[last] = value
    return json.dumps(document)


MALFORMED = [
    ("{", "not JSON"),
    ("[]", "not a genotype"),
    ('{"format": "other"}', "not a genotype"),
    (changed(["version"], 2), "version 2, this release reads version 1"),
    (changed(["normal"], 3), "normal: got 3"),
    (changed(["reduce"], {"nodes": []}), 'must be an object of "nodes" and "concat"'),
    (changed(["normal", "nodes"], [3]), "normal.nodes: got"),
    (changed(["normal", "nodes", 0, 0], ["sep_conv_3x3"]), "normal.nodes: got the edge"),
    (changed(["normal", "nodes", 0, 0, 1], True), "normal.nodes: got the edge"),
    (changed(["normal", "nodes", 0, 0, 1], "0"), "normal.nodes: got the edge"),
    (
        changed(["normal", "nodes", 0, 0, 0], "sep_conv_3x4"),
        "no operation 'sep_conv_3x4'; choose one of: sep_conv",
    ),
    (changed(["normal", "nodes", 0, 0, 0], "none"), "no operation 'none'"),
    (changed(["normal", "nodes", 0, 0, 1], 2), "node 2 comes from 2, must be from 0 to 1"),
    (changed(["normal", "nodes", 0, 0, 1], -1), "node 2 comes from -1"),
    (
        changed(["reduce", "nodes", 1], [["skip_connect", 0]]),
        "reduce: node 3 has 1 incoming edges, must have 2",
    ),
    (changed(["reduce", "concat"], []), "reduce: concat"),
    (changed(["reduce", "concat"], [2, 2]), "reduce: concat"),
    (changed(["reduce", "concat"], [6]), r"must be one or more different nodes from 2 to 5"),
    (changed(["reduce", "concat"], ["2"]), "reduce.concat: got"),
    (changed(["reduce", "concat"], 2), "reduce.concat: got"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED)
def test_malformed_files(text, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load(str(path))
    assert message in str(error.value)
    assert "bad.json" in str(error.value)


def test_a_genotype_of_no_cells_cannot_be_made():
    with pytest.raises(UserError, match="concat"):
        Genotype(Plan((), ()), Plan((), ()))
