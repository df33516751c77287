"""`metalearn export` of every kind of network: its example needs no metalearn and finds the run's numbers."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from metalearn import cli, export_translator
from metalearn.build import build
from metalearn.compose import compose
from metalearn.export import export
from metalearn.network import multiply_adds
from metalearn.train import checkpoint

cli.register_all()
TEXT = ["task=python_docs", "task.batch=2", "task.time=4", "machine=cpu", "train.steps=4", "network.units=4"]
STROKES = [
    "task=pen_strokes", "task.batch=2", "machine=cpu", "train.steps=4", "network.units=4", "network.layers=2",
]  # fmt: skip
HYPER = ["network.hyper_units=3", "network.embedding=2"]
PHRASES = [
    "task=phrases", "task.pieces=150", "task.train_pairs=200", "task.valid_pairs=20", "task.test_pairs=20",
    "machine=cpu", "train.steps=4", "network.units=6", "network.layers=3", "network.attention_units=5",
]  # fmt: skip
DIGITS = ["task=digits", "task.batch=4", "machine=cpu", "train.steps=4", "network=hypernetwork"]
RUNS = {
    "two layers of LSTM": [*TEXT, "network=lstm_lm", "network.layers=2"],
    "handwriting, LSTM": [*STROKES, "network=handwriting_lstm"],
    "handwriting, HyperLSTM": [*STROKES, "network=handwriting_hyperlstm", *HYPER],
    "translation, LSTM": [*PHRASES, "network=gnmt_lstm"],
    "translation, HyperLSTM": [*PHRASES, "network=gnmt_hyperlstm", *HYPER],
    "generated kernels": DIGITS,
}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """The encoder's loop is unrolled, which takes long."""
    monkeypatch.setattr(export_translator, "LONGEST", 6)


def exported(folder, parts):
    """What `metalearn export` makes of a run after one step of training."""
    config = compose(parts)
    OmegaConf.save(OmegaConf.create(dataclasses.asdict(config)), folder / "run.yaml")
    method = build(config).method
    method.step(0)
    (folder / "checkpoints").mkdir()
    state = {"step": 1, "best": None, "method": method.state_dict()}
    checkpoint.save(folder / "checkpoints/step_0000000001.pt", state)
    export(folder, folder / "export")
    return folder / "export"


@pytest.mark.slow
@pytest.mark.parametrize("parts", RUNS.values(), ids=RUNS)
def test_the_example_finds_the_run_s_numbers(tmp_path, parts):
    folder = exported(tmp_path, parts)
    (folder / "metalearn.py").write_text("raise ImportError('the example needs metalearn')")
    ran = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.rpartition(":")[2]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two layers of LSTM", "handwriting, HyperLSTM"])
def test_layers_are_not_taken_for_rows(tmp_path, name):
    """Two layers and two rows: only the second are free."""
    folder = exported(tmp_path, RUNS[name])
    program, example = (
        torch.export.load(folder / "network.pt2").module(),
        load_file(folder / "example.safetensors"),
    )
    state = {key[6:]: leaf for key, leaf in example.items() if key.startswith("state.")}
    assert all(leaf.shape[:2] == (2, 2) for leaf in state.values())
    x = example["x"][:, 0]
    logits, _ = program(x, state)
    more = {key: torch.cat([leaf, leaf, leaf[:, :1]], dim=1) for key, leaf in state.items()}
    again, last = program(torch.cat([x, x, x[:1]]), more)
    torch.testing.assert_close(again, torch.cat([logits, logits, logits[:1]]))
    assert {leaf.shape[:2] for leaf in last.values()} == {(2, 5)}


@pytest.mark.slow
def test_a_program_makes_its_kernels_from_the_weights_of_the_file(tmp_path):
    """Other embeddings, put in by name, make other kernels."""
    folder = exported(tmp_path, DIGITS)
    program, example = (
        torch.export.load(folder / "network.pt2").module(),
        load_file(folder / "example.safetensors"),
    )
    weights = load_file(folder / "weights.safetensors")
    program.load_state_dict({f"network.{name}": leaf for name, leaf in weights.items()}, strict=False)
    torch.testing.assert_close(program(example["x"]), example["logits"])
    changed = {f"network.{name}": 1.5 * leaf for name, leaf in weights.items() if "generator" in name}
    assert changed
    program.load_state_dict(changed, strict=False)
    assert not torch.allclose(program(example["x"]), example["logits"], atol=1e-4)


@pytest.mark.slow
def test_multiply_adds_of_generated_kernels_are_those_of_the_plain_network():
    """What makes the kernels is left out: they are kept from example to example."""
    plain, generated = (
        build(compose([*DIGITS, *parts])) for parts in (["network=convnet"], ["network=hypernetwork"])
    )
    counts = [multiply_adds(parts.method.network, (1, 8, 8)) for parts in (plain, generated)]
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_translators_read_any_number_of_sentences_and_the_decoder_any_length(tmp_path):
    folder = exported(tmp_path, RUNS["translation, LSTM"])
    encoder, decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    example = load_file(folder / "example.safetensors")
    state = {name[6:]: leaf[:1] for name, leaf in example.items() if name.startswith("state.")}
    memory = encoder(example["source"][:1])
    length = int((example["source"][0] != 0).sum())
    logits, weights, _ = decoder(example["target"][:1, 0], tuple(part[:, :length] for part in memory), state)
    torch.testing.assert_close(logits, example["logits"][0, :1])
    assert weights.shape == (1, length)
