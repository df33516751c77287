"""Language models: dropout, carried state, learning, export."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import metalearn.options  # noqa: F401
import tasks  # noqa: F401
from metalearn.compose import CONF, compose
from metalearn.export import _Step
from metalearn.hypernetworks.config import HyperlstmLmOptions, HyperrnnLmOptions, LstmLmOptions, RnnLmOptions
from metalearn.hypernetworks.language_model import (
    HyperLstmLanguageModel,
    HyperRnnLanguageModel,
    LstmLanguageModel,
    RnnLanguageModel,
)
from metalearn.registry import UserError, build, fields
from metalearn.rng import generator, seeded
from metalearn.task import TaskSpec


def make_spec(symbols, kind="language_model"):
    return TaskSpec("here", kind, (), symbols, {}, "bits", "", "", "", "")


def options(kind, name, units, layers, keep, **others):
    kept = {"input_keep": keep, "layer_keep": keep, "output_keep": keep}
    return kind(name=name, units=units, layers=layers, **kept, **others)


def gated(kind, name, units, layers, keep, layer_norm, **others):
    common = {"layer_norm": layer_norm, "forget_bias": 1.0, "initial": "code", "recurrent_keep": keep}
    return options(kind, name, units, layers, keep, **common, **others)


def make_lstm(symbols=7, units=6, layers=1, layer_norm=True, keep=1.0):
    given = gated(LstmLmOptions, "lstm_lm", units, layers, keep, layer_norm)
    return LstmLanguageModel(given, make_spec(symbols))


def make_hyper(symbols=7, units=6, layers=1, layer_norm=True, keep=1.0, hyper=4, embedding=2):
    small = {"hyper_units": hyper, "embedding": embedding, "hyper_layer_norm": layer_norm}
    small |= {"hyper_recurrent_keep": keep, "embeddings_from": "current"}
    given = gated(HyperlstmLmOptions, "hyperlstm_lm", units, layers, keep, layer_norm, **small)
    return HyperLstmLanguageModel(given, make_spec(symbols))


def make_rnn(symbols=7, units=6, layers=1, keep=1.0):
    return RnnLanguageModel(options(RnnLmOptions, "rnn_lm", units, layers, keep), make_spec(symbols))


def make_scaled(symbols=7, units=6, layers=1, keep=1.0, form="scaled"):
    small = {"hyper_units": 4, "embedding": 2, "form": form, "embeddings_from": "current"}
    given = options(HyperrnnLmOptions, "hyperrnn_lm", units, layers, keep, **small)
    return HyperRnnLanguageModel(given, make_spec(symbols))


def make_full(**changes):
    return make_scaled(**changes, form="full")


NETWORKS = [make_lstm, make_hyper, make_rnn, make_scaled, make_full]


def read(network, x, *key):
    with seeded(*key):
        return network(x)


@pytest.mark.parametrize("make", NETWORKS)
def test_carried_state_makes_two_halves_one_text(make):
    network = make().double().eval()
    x = torch.randint(7, (3, 10), generator=generator("x"))
    whole, first = network(x), network(x[:, :4])
    second = network(x[:, 4:], first.state)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits)
    torch.testing.assert_close(second.state, whole.state)
    assert whole.logits.shape == (3, 10, 7)
    assert not torch.allclose(network(x[:, 4:]).logits, second.logits)


@pytest.mark.parametrize("make", NETWORKS)
def test_dropout_is_keyed_and_off_in_evaluation(make):
    network = make(keep=0.7)
    x = torch.randint(7, (3, 10), generator=generator("x"))
    assert torch.equal(read(network, x, "a").logits, read(network, x, "a").logits)
    assert not torch.equal(read(network, x, "a").logits, read(network, x, "b").logits)
    network.eval()
    assert torch.equal(read(network, x, "a").logits, read(network, x, "b").logits)


def test_output_and_input_dropout_act_where_they_should():
    """No outputs kept: the logits are the bias. No inputs kept: symbols do not matter."""
    x = torch.randint(7, (3, 10), generator=generator("x"))
    network = make_lstm()
    network.options.output_keep = 1e-9
    torch.testing.assert_close(network(x).logits, network.output.bias.expand(3, 10, 7))
    network.options.output_keep, network.options.input_keep = 1.0, 1e-9
    torch.testing.assert_close(network(x).logits, network((x + 1) % 7).logits)


@pytest.mark.parametrize("make", NETWORKS)
def test_learns_to_count(make):
    """0 1 2 3 4 5 6 0 ...: from ln 7 to near nothing."""
    torch.manual_seed(0)
    network = make(units=16)
    text = torch.arange(16).remainder(7).expand(2, -1)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(text[:, :-1]).logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
    assert loss < 0.3


def test_refuses_tasks_without_text():
    with pytest.raises(UserError, match="choose a language_model task"):
        LstmLanguageModel(make_lstm().options, make_spec(7, "classification"))


def test_dropout_between_layers():
    """Nothing handed on: the second layer reads zeros whatever the symbols are."""
    x = torch.randint(7, (3, 10), generator=generator("x"))
    network = make_lstm(layers=2)
    assert network.recurrent.dropout == 0.0
    network.recurrent.dropout = 1.0
    torch.testing.assert_close(network(x).logits, network((x + 1) % 7).logits)
    assert make_lstm(layers=2, keep=0.75).recurrent.dropout == 0.25


@pytest.mark.parametrize("name", ["rnn_lm", "hyperrnn_lm", "lstm_lm", "hyperlstm_lm"])
def test_options_of_conf_are_complete(name):
    assert list(OmegaConf.load(CONF / "network" / f"{name}.yaml")) == fields("network", name)
    small = ["network.units=8", *(["network.hyper_units=4"] if name.startswith("hyper") else [])]
    network = build("network", compose([f"network={name}", *small]).network, spec=make_spec(7))
    assert network(torch.zeros(2, 3, dtype=torch.int64)).logits.shape == (2, 3, 7)


@pytest.mark.slow
@pytest.mark.parametrize("make", NETWORKS)
def test_exports_two_layers_with_any_number_of_rows(make):
    """As `metalearn export` does it: symbol by symbol, the state handed on."""
    network, batch = make(layers=2).eval(), torch.export.Dim("batch", min=1)
    state = network(torch.zeros(2, 1, dtype=torch.int64)).state
    given = (torch.zeros(2, dtype=torch.int64), state)
    shapes = ({0: batch}, {key: {1: batch} for key in state})
    program = torch.export.export(_Step(network), given, dynamic_shapes=shapes).module()
    x = torch.randint(7, (5, 6), generator=generator("x"))
    expected = network(x)
    state = {key: torch.zeros_like(leaf[:, :1]).repeat(1, 5, 1) for key, leaf in state.items()}
    for time in range(6):
        logits, state = program(x[:, time], state)
        torch.testing.assert_close(logits, expected.logits[:, time])
    torch.testing.assert_close(state, expected.state)
