"""`metalearn sample`: what is drawn, from which checkpoint, and what it says of mistakes."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from metalearn import cli
from metalearn.build import build
from metalearn.compose import compose
from metalearn.generation import generate
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.restore import restore
from metalearn.rng import generator
from metalearn.sample import Request, sample, shown
from metalearn.train import checkpoint

cli.register_all()
TEXT = ["task=python_docs", "task.batch=2", "task.time=4", "machine=cpu", "train.steps=4"]
LSTM = [*TEXT, "network=lstm_lm", "network.units=4"]
HYPER = [*TEXT, "network=hyperlstm_lm", "network.units=4", "network.hyper_units=3", "network.embedding=2"]
CELL = [*TEXT, "network=darts_recurrent_cell", "network.units=4"]
SEARCH = [
    *TEXT, "network=darts_recurrent_supernet", "network.units=4", "method=darts",
    "method.valid_batches=stream", "hypergradient=first_order", "train.test=false",
]  # fmt: skip
STROKES = ["task=pen_strokes", "task.batch=2", "machine=cpu", "network=handwriting_lstm", "network.units=4"]
PHRASES = [
    "task=phrases", "task.pieces=150", "task.train_pairs=200", "task.valid_pairs=20", "task.test_pairs=20",
    "machine=cpu", "network=gnmt_lstm", "network.units=8", "network.layers=2", "network.attention_units=8",
    "network.search.beam=2",
]  # fmt: skip
CLASSES = ["task=two_moons", "network=mlp", "machine=cpu"]


def store(folder, parts, **changes):
    """A run directory with a checkpoint of the start, or of a changed one."""
    config = compose(parts)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(config)), folder / "run.yaml")
    (folder / "checkpoints").mkdir()
    method = build(config).method
    _save(folder / "checkpoints/step_0000000002.pt", 2, method, changes)
    return method


def _save(path, step, method, changes):
    checkpoint.save(path, {"step": step, "best": None, "method": method.state_dict(), **changes})


@pytest.fixture(scope="module")
def text():
    """A task on characters."""
    return build(compose(LSTM)).task


SCORES = torch.tensor([[0.0, 1.0, -1.0, 2.0], [3.0, 0.0, 0.0, -torch.inf]])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_symbols_are_drawn_as_often_as_their_softmax_says(text, temperature):
    count, rng = 4000, generator("draws", str(temperature))
    drawn = text.draw(SCORES.repeat_interleave(count, 0), rng, temperature).view(2, count)
    shares = torch.stack([(drawn == symbol).double().mean(1) for symbol in range(4)], dim=1)
    torch.testing.assert_close(shares, (SCORES.double() / temperature).softmax(1), atol=0.025, rtol=0)
    assert shares[1, 3] == 0


def test_cold_draws_are_the_likeliest(text):
    assert text.draw(SCORES, generator(), 0.0).tolist() == [3, 0]
    assert text.draw(SCORES, generator(), 1e-300).tolist() == [3, 0]


class Fibonacci(Network):
    """Says surely that a symbol is the sum of the two before it, which only its state knows."""

    def forward(self, x, state=None):
        before = torch.zeros(len(x)) if state is None else state["before"]
        for symbol in x.unbind(1):
            total, before = before + symbol, symbol.float()
        logits = torch.nn.functional.one_hot(total.long() % 96, 96).float()[:, None]
        return Output(logits, {"before": before})


def test_the_state_is_carried_from_symbol_to_symbol(text):
    found = generate(Fibonacci(), text, torch.tensor([[1, 1], [2, 5]]), 6, generator(), 0.0)
    assert found.tolist() == [[2, 3, 5, 8, 13, 21], [7, 12, 19, 31, 50, 81]]


@pytest.mark.slow
def test_one_by_one_is_what_the_network_says_of_the_whole_text(tmp_path):
    """At temperature 0, each symbol is the likeliest after all those before it."""
    store(tmp_path, LSTM)
    (drawn,) = sample(tmp_path, Request(text="import ", length=12, temperature=0.0), tmp_path).texts
    parts = restore(tmp_path, "test")
    symbols = parts.task.encode(drawn)
    logits = parts.method.network.eval()(symbols[None, :-1]).logits[0]
    assert drawn.startswith("import ")
    assert torch.equal(logits.argmax(1)[6:], symbols[7:])


@pytest.mark.slow
@pytest.mark.parametrize("parts", [LSTM, HYPER, CELL], ids=["lstm", "hyperlstm", "darts cell"])
def test_the_same_seed_gives_the_same_text(metalearn, tmp_path, parts):
    store(tmp_path, parts)
    line = ["sample", str(tmp_path), "--text", "The ", "--length", "9", "--count", "2"]
    texts = []
    for seed in ("0", "0", "1"):
        code, out, err = metalearn(*line, "--seed", seed)
        assert code == 0, err
        texts.append(out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].count("The ") >= 2


def test_without_a_prompt_a_text_begins_after_the_end_of_a_line(tmp_path, text):
    store(tmp_path, LSTM)
    (drawn,) = sample(tmp_path, Request(length=9, temperature=0.0), tmp_path).texts
    (after,) = sample(tmp_path, Request(text="\n", length=9, temperature=0.0), tmp_path).texts
    assert len(drawn) == 9
    assert after == "\n" + drawn
    assert text.decode(text.opening[None]) == "\n"


def test_a_hypernetwork_shows_its_reading(metalearn, tmp_path):
    store(tmp_path, HYPER)
    code, _, err = metalearn("sample", str(tmp_path), "--length", "5", "--count", "2")
    paths = [tmp_path / f"samples/weight_change_{number}.svg" for number in (1, 2)]
    assert (code, err.split()) == (0, list(map(str, paths)))
    metalearn("sample", str(tmp_path), "--length", "5", "--output", str(tmp_path / "there"))
    assert (tmp_path / "there/weight_change.svg").read_text().startswith("<svg")
    (tmp_path / "file").write_text("")
    code, _, err = metalearn(
        "sample", str(tmp_path), "--length", "5", "--output", str(tmp_path / "file/there")
    )
    assert code == 2
    assert "cannot be written" in err
    assert "--output" in err


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_checkpoint_that_the_run_selects_is_taken(tmp_path, select):
    method = store(tmp_path, [*LSTM, f"train.select={select}"], best={"step": 1, "value": 0.0})
    with torch.no_grad():
        method.network.output.bias.fill_(7.0)
    _save(tmp_path / "checkpoints/best.pt", 1, method, {})
    bias = restore(tmp_path, "test").method.network.output.bias
    assert bool((bias == 7.0).all()) == (select == "best")


def test_a_run_of_another_machine_is_restored_here(tmp_path):
    store(tmp_path, LSTM)
    stored = OmegaConf.load(tmp_path / "run.yaml")
    stored.machine.device = "cuda"
    OmegaConf.save(stored, tmp_path / "run.yaml")
    device = restore(tmp_path, "test").method.network.output.bias.device.type
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.slow
def test_handwriting_is_a_picture(metalearn, tmp_path):
    store(tmp_path, STROKES)
    drawn = []
    for seed in ("0", "0", "1"):
        line = ["sample", str(tmp_path), "--length", "9", "--count", "2", "--seed", seed]
        code, out, err = metalearn(*line)
        paths = [tmp_path / f"samples/sample_{number}.svg" for number in (1, 2)]
        assert (code, out.split()) == (0, list(map(str, paths))), err
        drawn.append([path.read_text() for path in paths])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]
    assert all(text.startswith("<svg") for text in drawn[0])


@pytest.mark.slow
def test_translations_are_of_the_text_or_of_test_sentences(metalearn, tmp_path):
    store(tmp_path, PHRASES)
    code, out, err = metalearn("sample", str(tmp_path), "--count", "3")
    assert code == 0, err
    parts = restore(tmp_path, "test")
    network = parts.method.network.eval()
    shown = [dict(line.split(maxsplit=1) for line in text.splitlines()[:2]) for text in out.split("\n\n")]
    assert len(shown) == 3
    batches = list(parts.task.sweep("test"))
    sources = [parts.task.decode(row) for batch in batches for row in batch.x[:, 0]]
    references = [parts.task.decode(row) for batch in batches for row in batch.y]
    assert [text["source"] for text in shown] == [sources[place] for place in (0, 10, 19)]
    assert [text["reference"] for text in shown] == [references[place] for place in (0, 10, 19)]

    code, out, err = metalearn("sample", str(tmp_path), "--text", sources[5])
    answer = network.translate(parts.task.encode(sources[5])[None])[0]
    assert out == parts.task.decode(torch.tensor(answer, dtype=torch.int64)) + "\n"


MISTAKES = [  # the run (None: it is not looked at), what is asked for, what the message must hold
    (None, {"length": 0}, ["--length: got 0, must be at least 1"]),
    (None, {"length": 10**11}, ["--length: got 100000000000, must be at most 1,000,000"]),
    (None, {"count": 10**9}, ["--count: got 1000000000, must be at most 10,000"]),
    (None, {"count": 0}, ["--count: got 0, must be at least 1"]),
    (None, {"seed": -1}, ["--seed: got -1, must be at least 0"]),
    (None, {"temperature": -0.5}, ["--temperature: got -0.5", "at least 0"]),
    (None, {"temperature": float("nan")}, ["--temperature: got nan", "finite"]),
    (LSTM, {"text": "naïve"}, ["'ï' is not among the 96 symbols of python_docs", "allowed: ", "'~'"]),
    pytest.param(STROKES, {"text": "hello"}, ["--text: handwriting"], marks=pytest.mark.slow),
    pytest.param(
        PHRASES,
        {"temperature": 1.0},
        ["--temperature: translations are found by search"],
        marks=pytest.mark.slow,
    ),
    pytest.param(
        PHRASES,
        {"text": "the cat", "count": 2},
        ["--count: a text has one translation"],
        marks=pytest.mark.slow,
    ),
    pytest.param(PHRASES, {"text": " "}, ["--text: got nothing to translate"], marks=pytest.mark.slow),
    (CLASSES, {}, ["a classification run has nothing to generate", "language_model, handwriting"]),
    (SEARCH, {}, ["method darts trains no network of its own", "method supervised"]),
]


@pytest.mark.parametrize(("parts", "asked", "expected"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_message(tmp_path, parts, asked, expected):
    if parts is not None:
        store(tmp_path, parts)
    with pytest.raises(UserError) as error:
        sample(tmp_path, Request(**asked), tmp_path)
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_a_run_without_checkpoint_and_one_that_diverged_are_refused(tmp_path, metalearn):
    method = store(tmp_path, LSTM)
    with torch.no_grad():
        method.network.output.bias.fill_(torch.nan)
    _save(tmp_path / "checkpoints/step_0000000003.pt", 3, method, {})
    assert "its run diverged" in metalearn("sample", str(tmp_path))[2]
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    code, _, err = metalearn("sample", str(tmp_path))
    assert code == 2
    assert "has no checkpoint to sample from; let it run until train.checkpoint_every steps" in err
    assert "no run directory" in metalearn("sample", str(tmp_path / "nowhere"))[2]
    assert "--length" in metalearn("sample", str(tmp_path), "--length", "many")[2]


def test_a_terminal_is_not_told_to_do_things():
    assert shown("a\n\tb\x1b[2Jé\x7f") == "a\n\tb␛[2Jé\ufffd"
