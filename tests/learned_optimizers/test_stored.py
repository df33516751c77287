"""Trained optimizers on disk: found wherever a run leaves them, bit for bit, and refused with a reason."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import metalearn
from metalearn.learned_optimizers import stored
from metalearn.learned_optimizers.lstm import LstmRule
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.train.provenance import git


@pytest.fixture
def made(kit):
    """A rule and its meta-parameters."""
    rule = LstmRule(kit.rule(hidden=4), kit.context(kit.Blobs()).machine)
    return rule, rule.init(generator("meta"))


def same(found, made):
    (rule, meta), (ours, weights) = found, made
    assert dataclasses.asdict(rule.options) == dataclasses.asdict(ours.options)
    assert meta.keys() == weights.keys()
    assert all(torch.equal(meta[key], weights[key]) for key in meta)


@pytest.mark.parametrize("place", ["", "artifacts", "export", "artifacts/optimizer.json"])
def test_is_found_where_it_lies(made, tmp_path, place):
    stored.save(tmp_path / place.removesuffix("optimizer.json"), *made, {"task": "blobs", "seed": 3})
    (tmp_path / "run.yaml").write_text("method: {name: learned_optimizer}\n")
    path = tmp_path / place if place.endswith(".json") else tmp_path
    same(stored.load(path), made)
    assert stored.origin(path)["seed"] == 3


def test_weights_are_aligned(made, tmp_path):
    """As torch's own memory is: products of others differ in their last bits, and so do copies' steps."""
    stored.save(tmp_path, *made, {})
    assert any(leaf.data_ptr() % 64 for leaf in load_file(tmp_path / "optimizer.safetensors").values())
    assert not any(leaf.data_ptr() % 64 for leaf in stored.load(tmp_path)[1].values())


def test_artifacts_come_before_an_older_export(made, tmp_path):
    rule, meta = made
    stored.save(tmp_path / "export", rule, {key: leaf + 1 for key, leaf in meta.items()}, {})
    stored.save(tmp_path / "artifacts", rule, meta, {})
    same(stored.load(tmp_path), made)


def test_meta_training_s_artifacts(kit, tmp_path):
    """What a run leaves, and how far it had come."""
    learner = kit.learner(kit.Blobs(), hidden=4)
    for index in range(3):
        learner.step(index)
    learner.artifacts(tmp_path)
    same(stored.load(tmp_path), (learner.rule, {key: leaf.detach() for key, leaf in learner.meta.items()}))
    assert {key: stored.origin(tmp_path)[key] for key in ("format", "task", "seed", "steps")} == {
        "format": 1, "task": "blobs", "seed": 0, "steps": 3,
    }  # fmt: skip


def _described(folder, **changes):
    path = folder / "optimizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _option(folder, **changes):
    _described(folder, rule=json.loads((folder / "optimizer.json").read_text())["rule"] | changes)


def _weights(folder, change):
    path = folder / "optimizer.safetensors"
    leaves = load_file(path)
    change(leaves)
    save_file(leaves, path)


def _torn(path):
    path.write_bytes(path.read_bytes()[:100])


def _poisoned(path):
    save_file({key: leaf * math.nan for key, leaf in load_file(path).items()}, path)


SPOILED = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        r"holds neither optimizer\.json nor a run \(run\.yaml\)",
    ),
    "no weights": (
        lambda folder: (folder / "optimizer.safetensors").unlink(),
        "optimizer.safetensors: cannot be read .*No such file",
    ),
    "no description": (
        lambda folder: (folder / "optimizer.json").unlink(),
        "optimizer.json: cannot be read .*belong together",
    ),
    "diverged": (
        lambda folder: _poisoned(folder / "optimizer.safetensors"),
        "numbers that are not finite: its training diverged",
    ),
    "torn weights": (lambda folder: _torn(folder / "optimizer.safetensors"), "safetensors: cannot be read"),
    "torn description": (lambda folder: _torn(folder / "optimizer.json"), "json: cannot be read"),
    "no object": (lambda folder: (folder / "optimizer.json").write_text("[]"), "it has no `rule`"),
    "another format": (
        lambda folder: _described(folder, format=2),
        "format 2; this metalearn reads format 1",
    ),
    "another rule": (lambda folder: _option(folder, name="lstn"), "no rule is called 'lstn'; .* lstm"),
    "unknown option": (lambda folder: _option(folder, units=3), r"rule\.units: no such option"),
    "mistyped option": (lambda folder: _option(folder, hidden="wide"), r"rule\.hidden: got 'wide'"),
    "another width": (
        lambda folder: _option(folder, hidden=5),
        r"linear\.weight is \[4, 1\] \(wanted: \[5, 1\]\); .*lstm\.0\.weight is \[6, 16\]",
    ),
    "a weight too few": (
        lambda folder: _weights(folder, lambda leaves: leaves.pop("linear.bias")),
        r"linear\.bias is missing \(wanted: \[1\]\)",
    ),
    "a weight too many": (
        lambda folder: _weights(folder, lambda leaves: leaves.update(more=torch.zeros(2))),
        r"more is \[2\] \(wanted: none of this name\)",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_refused_with_a_reason(made, tmp_path, name):
    spoil, match = SPOILED[name]
    folder = tmp_path / "optimizer"
    stored.save(folder, *made, {})
    spoil(folder)
    with pytest.raises(UserError, match=match) as caught:
        stored.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("method", "match"),
    [("supervised", "is a run of supervised"), ("learned_optimizer", "metalearn export .*run")],
)
def test_a_run_without_an_optimizer_says_why(tmp_path, method, match):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text(f"method: {{name: {method}}}\n")
    with pytest.raises(UserError, match=match):
        stored.load(run)


def test_pretrained_is_the_package_s_own(made, monkeypatch, tmp_path):
    """The word, not a folder of that name; its absence says what else there is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stored, "SHIPPED", tmp_path / "shipped")
    stored.save(tmp_path / "pretrained", *made, {})
    with pytest.raises(UserError, match="comes without a trained optimizer; give the path"):
        metalearn.LearnedOptimizer.pretrained()
    rule, meta = made
    stored.save(tmp_path / "shipped", rule, {key: leaf + 1 for key, leaf in meta.items()}, {})
    same(stored.load("pretrained"), (rule, {key: leaf + 1 for key, leaf in meta.items()}))
    same(stored.load("./pretrained"), made)


SHIPS = resources.files("metalearn.learned_optimizers") / "pretrained"


@pytest.mark.skipif(not SHIPS.is_dir(), reason="this copy ships no trained optimizer")
def test_the_shipped_optimizer_trains_a_network():
    """And its score card and recipe come with it."""
    assert (SHIPS / "card.md").is_file()
    assert {"seed", "steps", "task", "method", "commit"} <= stored.origin("pretrained").keys()
    x = torch.randn(64, 4, generator=generator("x"))
    network = torch.nn.Linear(4, 1)
    optimizer = metalearn.LearnedOptimizer.pretrained()(network.named_parameters())
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


PAGE = Path(__file__).parents[2] / "docs/learned_optimizers.md"


@pytest.mark.slow
@pytest.mark.skipif(not SHIPS.is_dir(), reason="this copy ships no trained optimizer")
def test_the_documented_example_learns_digits():
    """As it stands there."""
    blocks = re.findall(r"```python[^\n]*\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (example,) = (block for block in blocks if "LearnedOptimizer.pretrained()" in block)
    torch.manual_seed(0)
    names = {}
    exec(example, names)
    assert names["loss"].item() < 0.5


@pytest.mark.parametrize("name", [pytest.param("LearnedOptimizer", marks=pytest.mark.slow), "Missing"])
def test_the_package_gives_it_lazily(name):
    """`import metalearn` brings no torch."""
    program = f"import sys, metalearn; assert 'torch' not in sys.modules; print(metalearn.{name})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if name == "Missing":
        assert "module 'metalearn' has no attribute 'Missing'" in ran.stderr
    else:
        assert "torch_optimizer.LearnedOptimizer" in ran.stdout


RUN = [
    "recipe=learned_optimizers/mnist_mlp", "task=digits", "task.batch=8", "machine=cpu", "log=none",
    "log.progress=false", "train.steps=2", "train.select=last", "train.evaluate_every=0",
    "method.horizon=4", "method.unroll=2", "method.valid_problems=1", "method.test_problems=1",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_its_export_and_its_example(metalearn, tmp_path):
    """From the command to files that train a network."""
    code, _, err = metalearn("train", *RUN, "run_dir=run")
    assert code == 0, err
    code, out, _ = metalearn("export", "run")
    names = ["example.py", "optimizer.json", "optimizer.safetensors"]
    assert (code, out.split()) == (0, [f"run/export/{name}" for name in names])
    assert sorted(path.name for path in (tmp_path / "run/export").iterdir()) == names
    same(stored.load(tmp_path / "run/export"), stored.load(tmp_path / "run"))
    assert stored.origin(tmp_path / "run/export")["commit"] == (git() or {}).get("commit")

    for file in (tmp_path / "run/artifacts").iterdir():
        file.unlink()
    same(stored.load(tmp_path / "run"), stored.load(tmp_path / "run/export"))
    shutil.copytree(tmp_path / "run/export", tmp_path / "elsewhere")
    ran = subprocess.run(
        [sys.executable, tmp_path / "elsewhere/example.py"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    losses = [float(line.rpartition(" ")[2]) for line in ran.stdout.splitlines()]
    assert len(losses) == 6
    assert all(loss > 0 for loss in losses)
