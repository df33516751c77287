"""What the papers' figures 4 and 5 show, against explicit matrices and counts."""

import itertools
import json
from xml.etree import ElementTree

import pytest
import torch

from metalearn import cli
from metalearn.hypernetworks import analysis, weight_change
from metalearn.hypernetworks.analysis import Subject, activations, trace
from metalearn.hypernetworks.config import CellOptions, HyperOptions, HyperRnnOptions
from metalearn.hypernetworks.draw_weight_change import LEFT, STOPS, WIDEST, draw, shade
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.hyperrnn import HyperRNN
from metalearn.hypernetworks.lstm import LSTM
from metalearn.hypernetworks.weight_change import row_scales, weight_changes
from metalearn.network import Network, Output
from metalearn.rng import generator

cli.register_all()
UNITS, SYMBOLS = 5, 7


class Reader(Network):
    """A stack whose outputs are its scores; its numbers have left their start, so none is 0 by accident."""

    def __init__(self, stack, parts):
        super().__init__()
        self.stack, self.parts = stack, parts
        rng = generator("start")
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)

    def forward(self, x, state=None):
        start = None if state is None else tuple(state[part] for part in self.parts)
        outputs, last = self.stack(x.t(), start)
        return Output(outputs.transpose(0, 1), dict(zip(self.parts, last, strict=True)))


def hyper_reader(embeddings_from="current", layer_norm=False, layers=1):
    cell = CellOptions(layer_norm, 1.0, 1.0, "code")
    hyper = HyperOptions(3, 2, layer_norm, 1.0, embeddings_from)
    stack = HyperLSTM(SYMBOLS, UNITS, cell, hyper, layers).double()
    return Reader(stack, ("h", "c", "hyper_h", "hyper_c")).eval()


def lstm_reader(layer_norm=False, layers=1):
    return Reader(
        LSTM(SYMBOLS, UNITS, CellOptions(layer_norm, 1.0, 1.0, "code"), layers).double(), ("h", "c")
    )


def rnn_reader(form, embeddings_from):
    hyper = HyperRnnOptions(3, 2, form, embeddings_from)
    return Reader(HyperRNN(SYMBOLS, UNITS, hyper).double(), ("h", "hyper_h")).eval()


def symbols(*shape):
    return torch.randint(SYMBOLS, shape, generator=generator("x"))


def effective(cell, source):
    """The four matrices as the paper writes them, [gate unit input], by equations 11 and 12."""
    matrices = []
    for gate, block in enumerate(cell.weight_h.chunk(4, dim=1)):
        z = source @ cell.weight_z[:, gate] + cell.bias_z[gate]
        matrices.append(torch.diag(z @ cell.weight_d[gate]) @ block.t())
    return torch.stack(matrices)


def test_norms_are_those_of_explicit_matrices():
    network = hyper_reader()
    cell = network.stack.cells[0]
    hyper = trace(network, symbols(1, 9))["hyper_h"][:, 0, 0]
    matrices = torch.stack([effective(cell, now) for now in hyper])

    found = weight_changes(cell, hyper)

    expected = (matrices[1:] - matrices[:-1]).flatten(2).norm(dim=2).t()
    assert [*found] == ["i", "g", "f", "o"]
    assert expected.min() > 0
    torch.testing.assert_close(torch.stack([*found.values()]), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("embeddings_from", ["current", "previous"])
@pytest.mark.parametrize("form", ["scaled", "full"])
def test_norms_of_a_hyper_rnn_are_those_of_explicit_matrices(form, embeddings_from):
    """The matrix of a step is what turns h into the sum before its tanh."""
    network = rnn_reader(form, embeddings_from)
    cell = network.stack.cells[0]
    hyper = trace(network, symbols(1, 6))["hyper_h"][:, 0, 0]
    source = hyper if embeddings_from == "current" else torch.cat([torch.zeros_like(hyper[:1]), hyper[:-1]])
    z = source @ cell.weight_z[:, 0] + cell.bias_z[0]
    products = torch.eye(UNITS, dtype=torch.float64) @ cell.of_hidden.weight
    matrices = [cell.of_hidden.mix(now.expand(UNITS, -1), products) for now in z]

    (found,) = weight_changes(cell, hyper).values()

    expected = torch.stack([(after - before).norm() for before, after in itertools.pairwise(matrices)])
    assert expected.min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("embeddings_from", ["current", "previous"])
def test_an_ordinary_lstm_with_the_effective_matrices_takes_the_same_step(embeddings_from, monkeypatch):
    """So the matrices that are drawn are those that the network used, at the step it used them."""
    network, text = hyper_reader(embeddings_from), symbols(6)
    cell = network.stack.cells[0]
    cell.weight_x.data.zero_()  # inputs reach the main cell through its weights of h alone
    cell.weight_d.data[8:].zero_()  # no generated bias
    used = []
    scaled = weight_change.scaled_changes
    monkeypatch.setattr(
        weight_change, "scaled_changes", lambda scales, rows: used.append(scales) or scaled(scales, rows)
    )
    analysis.annotate(Subject(network, network.stack), text, list("abcdef"))
    states = trace(network, text[None])
    plain = LSTM(SYMBOLS, UNITS, cell.options).double()
    plain.cells[0].weight_x.data.zero_()
    plain.cells[0].bias.data.copy_(cell.bias)

    for time in range(1, 6):
        plain.cells[0].weight_h.data = cell.weight_h * used[0][:, time].flatten()
        start = tuple(states[part][time - 1] for part in ("h", "c"))
        _, (h, c) = plain(text[None, time : time + 1].t(), start)
        torch.testing.assert_close((h, c), (states["h"][time], states["c"][time]))


def test_rows_start_at_a_tenth_and_do_not_move():
    """Step-0 facts of appendix A.2.3: d = 0.1 whatever is read."""
    options = CellOptions(False, 1.0, 1.0, "paper")
    cell = HyperLSTM(SYMBOLS, UNITS, options, HyperOptions(3, 2, False, 1.0, "current")).double().cells[0]
    source = torch.randn(4, 3, generator=generator("source"), dtype=torch.float64)
    torch.testing.assert_close(row_scales(cell, source), torch.full((4, 4, UNITS), 0.1, dtype=torch.float64))
    assert max(moved.max() for moved in weight_changes(cell, source).values()) < 1e-12


@pytest.mark.parametrize("make", [lstm_reader, hyper_reader])
def test_reading_one_by_one_is_reading_at_once(make):
    network, x = make(layers=2), symbols(3, 6)
    states = trace(network, x)
    torch.testing.assert_close({part: leaf[-1] for part, leaf in states.items()}, network(x).state)
    assert states["c"].shape == (6, 2, 3, UNITS)


@pytest.mark.parametrize("make", [lstm_reader, hyper_reader])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_activations_are_what_output_gates_multiply(make, layer_norm):
    """h = sigmoid(o) tanh(...), so the output over the activation is a gate: within (0, 1)."""
    network, x = make(layer_norm=layer_norm), symbols(4, 8)
    cell, states = network.stack.cells[0], trace(network, x)
    seen = states["c"]
    if layer_norm:
        centred = seen - seen.mean(-1, keepdim=True)
        seen = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        seen = seen * cell.norms.cell_gain + cell.norms.cell_shift
    values = torch.tanh(seen)
    assert ((states["h"] / values > 0) & (states["h"] / values < 1)).all()
    monitored = values.flatten()

    (name, found), *rest = activations(Subject(network, network.stack), x).items()

    assert not rest
    kind = "HyperLSTM" if make is hyper_reader else "LSTM"
    assert name == f"{'LN ' if layer_norm else ''}{kind} {UNITS}"
    expected = [
        ((monitored >= low) & (monitored < low + 0.05)).double().mean() for low in torch.arange(40) * 0.05 - 1
    ]
    torch.testing.assert_close(found.shares.double(), torch.stack(expected), atol=1e-6, rtol=0)
    assert found.saturated == pytest.approx((monitored.abs() > 0.99).double().mean().item())


def test_layers_have_a_strip_and_a_histogram_each():
    network = hyper_reader(layers=2)
    subject = Subject(network, network.stack)
    assert [*activations(subject, symbols(2, 4))] == [
        f"HyperLSTM {UNITS}, layer {number}" for number in (1, 2)
    ]
    texts = [
        element.text
        for element in ElementTree.fromstring(analysis.annotate(subject, symbols(4), list("abcd"))).iter()
    ]
    assert {f"{layer} {gate}" for layer in (1, 2) for gate in "igfo"} <= set(texts)


def _picture(words, strips):
    return ElementTree.fromstring(draw(words, strips))


def _texts(root):
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_character_has_its_place_and_its_colour():
    words = list('a <"b\n\x07')
    root = _picture(words, {"i": [0.0, 2.0, 1.0, 0.5, 0.0, 0.0]})
    assert 'a<"b↵␇' in _texts(root)
    (line,) = [element for element in root.iter() if element.text == 'a<"b↵␇']
    places = [float(place) for place in line.get("x").split()]
    columns = [(place - LEFT) / 11 - 0.5 for place in places]
    assert columns == pytest.approx([0, 2, 3, 4, 5, 6])  # the blank keeps its column
    fills = {
        path.get("fill"): path.get("d").count("M") for path in root.iter("{http://www.w3.org/2000/svg}path")
    }
    assert fills[shade(1.0)] == 1
    assert fills[shade(0.0)] == 3
    assert sum(fills.values()) == len(words)
    assert any("largest Frobenius norm: i 2" in text for text in _texts(root))


def test_lines_are_wrapped_and_words_are_parted():
    root = _picture(["x"] * (2 * WIDEST + 1), {"i": [1.0] * 2 * WIDEST})
    assert [len(text) for text in _texts(root) if set(text) == {"x"}] == [WIDEST, WIDEST, 1]
    root = _picture(["the", "a", "y" * 99], {"i": [1.0, 1.0]})
    assert "thea" in _texts(root)
    (line,) = [element for element in root.iter() if element.text == "thea"]
    assert float(line.get("x").split()[3]) - float(line.get("x").split()[2]) == 22.0
    assert "y" * WIDEST in _texts(root)


def test_pictures_hold_vectors_alone_and_no_colour_beyond_the_scale():
    root = _picture(list("abc"), {"i": [float("nan"), 1.0], "g": [0.0, 0.0]})
    assert not [element for element in root.iter() if element.tag.endswith("image")]
    assert shade(7.0) == shade(1.0) == "#" + "".join(f"{part:02x}" for part in STOPS[-1])


@pytest.mark.slow
def test_a_run_leaves_both_figures(tmp_path, monkeypatch):
    """The same each time, and without a draw from training's generators."""
    from metalearn.build import build
    from metalearn.compose import compose

    parts = ["task=python_docs", "task.batch=2", "network=hyperlstm_lm", "network.units=4"]
    small = ["network.hyper_units=3", "network.embedding=2", "machine=cpu", "train.steps=1"]
    method = build(compose([*parts, *small])).method
    monkeypatch.setattr(analysis, "WRITTEN", 12)
    before = torch.get_rng_state()
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        method.artifacts(tmp_path / name)
        written.append(
            [(tmp_path / name / file).read_text() for file in ("weight_change.svg", "activations.json")]
        )
    assert torch.equal(torch.get_rng_state(), before)
    assert written[0] == written[1]
    curves = json.loads(written[0][1])
    assert [*curves["series"]] == ["HyperLSTM 4"]
    assert len(curves["x"]) == len(curves["series"]["HyperLSTM 4"]) == 40
    assert sum(curves["series"]["HyperLSTM 4"]) == pytest.approx(100, abs=0.01)
