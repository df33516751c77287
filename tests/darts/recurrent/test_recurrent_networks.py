"""Cell, supernet and language model against independent NumPy, and the paper's numbers of parameters."""

import dataclasses

import numpy as np
import pytest
import torch

import metalearn.options  # noqa: F401
import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.genotype import Edge
from metalearn.darts.recurrent.cell import RecurrentCell, RecurrentCellNetwork
from metalearn.darts.recurrent.genotype import RecurrentGenotype, load
from metalearn.darts.recurrent.language_model import Masks, Words
from metalearn.darts.recurrent.supernet import MixedRecurrentCell, RecurrentSupernet
from metalearn.darts.space import Mixture, one_path, running_statistics_kept
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec

PTB = TaskSpec("ptb_word", "language_model", (), 10_000, {}, "perplexity", "", "", "", "")
WIKITEXT = dataclasses.replace(PTB, name="wikitext2", outputs=33_278)


def options(network, **changes):
    return dataclasses.replace(
        compose(["method=supervised", f"network={network}", "task=ptb_word"]).network, **changes
    )


def randn(*shape, key="x"):
    return torch.randn(shape, generator=generator(key, *shape), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


NUMPY = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "identity": lambda x: x,
}


def numpy_first(x, h, weight, masks):
    n = h.shape[1]
    both = np.concatenate([x * masks[0], h * masks[1]], axis=1) @ weight
    return h + sigmoid(both[:, :n]) * (np.tanh(both[:, n:]) - h)


def normalised(s):
    return (s - s.mean(0)) / np.sqrt(s.var(0) + 1e-5)


def drawn(batch, units, seed=0):
    """x, h and 0-or-scaled masks."""
    x, h = randn(batch, units, key=("x", seed)), randn(batch, units, key=("h", seed))
    keep = torch.rand(2, batch, units, generator=generator("masks", seed), dtype=torch.float64) < 0.6
    return x, h, Masks(*(keep.double() / 0.6))


@pytest.mark.parametrize(
    ("network", "changes", "spec", "count"),
    [
        ("darts_recurrent_cell", {}, PTB, 22_960_000),
        ("darts_recurrent_cell", {"genotype": "enas_rnn"}, PTB, 27_295_000),
        ("darts_recurrent_cell", {"units": 700}, WIKITEXT, 33_127_878),
        ("darts_recurrent_supernet", {}, PTB, 4_810_000),
    ],
)
def test_numbers_of_parameters_are_the_paper_s(network, changes, spec, count):
    build = RecurrentSupernet if network.endswith("supernet") else RecurrentCellNetwork
    with torch.device("meta"):
        built = build(options(network, **changes), spec)
    assert sum(leaf.numel() for leaf in built.parameters()) == count


@pytest.mark.parametrize("name", ["darts_rnn_v2", "enas_rnn"])
def test_cell_step_against_numpy(name):
    genotype = load(name)
    with seeded("cell"):
        cell = RecurrentCell(genotype, 5, 0.8).double()
    x, h, masks = drawn(3, 5)
    states = [numpy_first(x.numpy(), h.numpy(), cell.first.detach().numpy(), [m.numpy() for m in masks])]
    for (operation, source), weight in zip(genotype.nodes, cell.nodes, strict=True):
        product = (states[source] * masks.hidden.numpy()) @ weight.detach().numpy()
        gate, candidate = product[:, :5], NUMPY[operation](product[:, 5:])
        states.append((1 - sigmoid(gate)) * states[source] + sigmoid(gate) * candidate)
    expected = sum(states[node] for node in genotype.concat) / len(genotype.concat)
    np.testing.assert_allclose(cell(x, h, masks).detach().numpy(), expected, rtol=1e-12)


def test_the_mean_is_of_the_named_nodes_and_leaves_the_initial_state_out():
    genotype = RecurrentGenotype((Edge("tanh", 0), Edge("relu", 0)), (2,))
    cell = RecurrentCell(genotype, 4, 0.8).double()
    other = RecurrentCell(RecurrentGenotype((Edge("relu", 0),), (1,)), 4, 0.8).double()
    other.first, other.nodes[0] = cell.first, cell.nodes[1]
    x, h, masks = drawn(3, 4)
    torch.testing.assert_close(cell(x, h, masks), other(x, h, masks), rtol=0, atol=0)


def numpy_supernet_step(cell, x, h, masks, weights):
    states = [normalised(numpy_first(x, h, cell.first.detach().numpy(), masks))]
    edge = 0
    for matrix in cell.nodes:
        total = np.zeros_like(h)
        for state in states:
            product = (state * masks[1]) @ matrix.detach().numpy()
            gate, candidate = sigmoid(product[:, : h.shape[1]]), product[:, h.shape[1] :]
            for place, name in enumerate(["tanh", "relu", "sigmoid", "identity"], start=1):
                moved = state + gate * (NUMPY[name](candidate) - state)
                total += weights[edge, place] * moved
            edge += 1
        states.append(normalised(total))
    return sum(states[1:]) / len(states[1:])


def test_supernet_step_against_numpy():
    """The share of none is lost and every state is normalised by its own batch."""
    with seeded("mixed"):
        cell = MixedRecurrentCell(3, 5, 0.8).double()
    weights = randn(6, 5, key="alpha").softmax(dim=-1)
    x, h, masks = drawn(4, 5)
    expected = numpy_supernet_step(cell, x.numpy(), h.numpy(), [m.numpy() for m in masks], weights.numpy())
    np.testing.assert_allclose(cell(x, h, masks, weights, None).detach().numpy(), expected, rtol=1e-11)


def test_one_normalisation_sees_every_state_of_every_step(recurrent_supernet, text):
    network, batch = recurrent_supernet(), text.batch("train", 0)
    seen = []
    network.cell.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    with running_statistics_kept(network):
        network(batch.x)
    assert not network.cell.norm.running_mean.any()
    assert len(seen) == 4 * (1 + 3)
    network(batch.x)
    mean = torch.zeros(6, dtype=torch.float64)
    for state in seen[16:]:
        mean = 0.9 * mean + 0.1 * state.mean(dim=0)
    torch.testing.assert_close(network.cell.norm.running_mean, mean)
    assert network.cell.norm.num_batches_tracked == 16


def test_a_single_path_runs_alone_and_is_the_mixture_with_weight_one(recurrent_supernet, text, monkeypatch):
    network, batch = recurrent_supernet(), text.batch("train", 0)
    genotype = RecurrentGenotype((Edge("sigmoid", 0), Edge("relu", 1), Edge("identity", 1)), (1, 2, 3))
    path = one_path(network.encode(genotype), network.words.weight)
    calls = []
    functions = {
        name: lambda x, name=name, f=f: calls.append((name, len(x))) or f(x)
        for name, f in {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}.items()
    }
    monkeypatch.setattr("metalearn.darts.recurrent.supernet.FUNCTIONS", functions | {"identity": lambda x: x})
    with seeded("masks"):
        alone = network(batch.x, mixture=path).logits
    assert calls == [("sigmoid", 1), ("relu", 1)] * 4
    with seeded("masks"):
        torch.testing.assert_close(alone, network(batch.x, mixture=Mixture(path.weights)).logits)


def test_what_does_not_run_has_no_weight(recurrent_supernet, text):
    network, batch = recurrent_supernet().eval(), text.batch("train", 0)
    path = one_path(network.encode(network.sample(generator("path"))), network.words.weight)
    even = torch.full((6, 5), 0.2, dtype=torch.float64)
    lone = {"cell": torch.where(path.weights["cell"] > 0, even, 0.0)}
    torch.testing.assert_close(
        network(batch.x, mixture=Mixture({"cell": even}, path.running)).logits,
        network(batch.x, mixture=Mixture(lone)).logits,
    )


def test_without_a_mixture_all_activations_weigh_the_same(recurrent_supernet, text):
    network, x = recurrent_supernet().eval(), text.batch("train", 0).x
    even = Mixture({"cell": torch.full((6, 5), 0.2, dtype=torch.float64)})
    torch.testing.assert_close(network(x).logits, network(x, mixture=even).logits)


def test_choices_are_thirty_six_edges_of_five(recurrent_supernet):
    network = recurrent_supernet(nodes=8)
    choice = network.choices["cell"]
    assert choice.shape == (36, 5)
    assert list(zip(choice.sources, choice.targets, strict=True))[:4] == [(0, 1), (0, 2), (1, 2), (0, 3)]
    genotype = network.sample(generator("sample"))
    assert network.discretise({"cell": network.encode(genotype)["cell"].double()}) == genotype


def test_masks_are_drawn_once_a_sequence(supernet_options):
    words = Words(dataclasses.replace(supernet_options, units=400), PTB).double()
    with torch.no_grad():
        words.weight.fill_(1.0)
    with seeded("embed"):
        embedded = words.embed(torch.randint(100, (3, 7)))
    assert (embedded == embedded[:1]).all()
    assert set(embedded.unique().tolist()) == {0.0, 1.25}
    masks = words.masks(50)
    assert masks is not None
    assert set(masks.input.unique().tolist()) == {0.0, 4.0}
    torch.testing.assert_close(masks.input.mean().item(), 1.0, atol=0.1, rtol=0)
    torch.testing.assert_close(masks.hidden.max().item(), 1 / 0.75)
    output = words.score(torch.ones(7, 3, 400, dtype=torch.float64))
    torch.testing.assert_close(output.logits, output.logits[:, :1].expand_as(output.logits))
    assert words.eval().masks(50) is None


def test_word_dropout_takes_whole_words_wherever_they_stand(supernet_options):
    changes = {"units": 3, "word_dropout": 0.5, "embedding_dropout": 0.0}
    words = Words(dataclasses.replace(supernet_options, **changes), PTB).double()
    symbols = torch.arange(40).repeat(1, 2)
    with seeded("embed"):
        ratio = words.embed(symbols)[:, 0] / words.weight[symbols[0]]
    assert (ratio == ratio[:, :1]).all()
    assert (ratio[:40] == ratio[40:]).all()
    assert set(ratio.unique().tolist()) == {0.0, 2.0}


def test_weights_start_uniform_and_the_decoder_is_the_embedding():
    network = RecurrentCellNetwork(options("darts_recurrent_cell", units=60), PTB)
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"words", "cell"}
    for name, leaf in network.named_parameters():
        limit = float(leaf.detach().abs().max())
        assert limit == 0 if name == "words.bias" else 0.039 < limit <= 0.04
    hidden = torch.randn(2, 3, 60)
    network.eval()
    expected = hidden.transpose(0, 1) @ network.words.weight.T
    torch.testing.assert_close(network.words.score(hidden).logits, expected)


def test_penalties_are_those_of_outputs_before_and_after_dropout(supernet_options):
    changes = {"activation_penalty": 2.0, "temporal_penalty": 3.0, "output_dropout": 0.5}
    words = Words(dataclasses.replace(supernet_options, **changes), PTB).double()
    hidden = randn(4, 5, 6)
    with seeded("mask"):
        found = words.score(hidden).penalty
    with seeded("mask"):
        mask = torch.empty(5, 6, dtype=torch.float64).bernoulli_(0.5) / 0.5
    change = hidden[1:] - hidden[:-1]
    expected = 2 * (hidden * mask).square().mean() + 3 * change.square().mean()
    torch.testing.assert_close(found, expected)
    assert words.score(hidden[:1]).penalty.isfinite()
    assert words.eval().score(hidden).penalty is None
    assert (
        Words(dataclasses.replace(supernet_options, temporal_penalty=0.0), PTB).double().score(hidden).penalty
        is None
    )


@pytest.mark.parametrize("name", ["darts_recurrent_cell", "darts_recurrent_supernet"])
def test_a_text_read_in_two_parts_is_read_as_one(name):
    build = RecurrentSupernet if name.endswith("supernet") else RecurrentCellNetwork
    network = build(options(name, units=8), PTB).double().eval()
    x = torch.randint(100, (3, 6))
    first = network(x[:, :4])
    second = network(x[:, 4:], first.state)
    whole = network(x)
    assert set(whole.state) == {"hidden"}
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole.logits)
    torch.testing.assert_close(second.state, whole.state)


def test_random_genotype_follows_the_seed_of_the_builder():
    found = []
    for seed in (0, 0, 1):
        with seeded(seed, "network"):
            found.append(
                RecurrentCellNetwork(
                    options("darts_recurrent_cell", genotype="random", units=4), PTB
                ).genotype
            )
    assert found[0] == found[1] != found[2]
    assert len(found[0].nodes) == 8


def test_restricted_takes_masks_and_refuses_cells(recurrent_supernet):
    network = recurrent_supernet()
    allowed = {"cell": network.choices["cell"].allowed.clone()}
    allowed["cell"][:, 4] = False
    assert network.restricted(1, allowed).choices["cell"].allowed.sum() == 24
    with pytest.raises(UserError, match="got 8 cells, it has one"):
        network.restricted(8, allowed)


def test_other_tasks_are_refused():
    images = TaskSpec("digits", "classification", (1, 8, 8), 10, {}, "error", "", "", "", "")
    with pytest.raises(UserError, match="digits is a classification; choose a language_model task"):
        RecurrentCellNetwork(options("darts_recurrent_cell"), images)
