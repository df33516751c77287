"""`metalearn train`, `replicate` and `export` from end to end, at toy size."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from metalearn import records

TINY = ["task=two_moons", "network=mlp", "train.steps=6", "machine=cpu", "log.progress=false"]


def test_a_run_says_its_numbers_and_leaves_a_report(metalearn, tmp_path):
    code, out, _ = metalearn("train", *TINY, "run_dir=run")

    assert code == 0
    last = records.read(tmp_path / "run").last("test/error")
    assert f"test/error   {last:.5g}" in out
    assert "finished: run/report.html" in out
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))


def test_a_search_that_is_to_be_tested_does_not_begin(metalearn, tmp_path):
    space = ["network=darts_supernet", "network.cells=3", "network.channels=2", "network.nodes=1"]
    search = ["task=digits", "task.batch=8", *space, "method=darts", "hypergradient=first_order"]
    code, _, err = metalearn("train", *search, "train.steps=1", "log=none", "run_dir=run")

    assert code == 2
    assert "train.test: got true, but method darts never reads the test split; set train.test=false" in err
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_stored_configuration_runs_anew_to_the_same_bytes(metalearn, tmp_path):
    metalearn("train", *TINY, "run_dir=old", "log=none", "method.learning_rate=0.03")
    code, _, _ = metalearn("train", "--config-dir", "old", "run_dir=new")

    assert code == 0
    assert (tmp_path / "new/metrics.jsonl").read_bytes() == (tmp_path / "old/metrics.jsonl").read_bytes()
    code, _, err = metalearn("train", "--config-dir", "old", "log=wandb")
    assert code == 2
    assert "log: cannot be chosen anew" in err
    assert "log.name" in err


def test_a_changed_configuration_does_not_enter_an_old_run(metalearn):
    metalearn("train", *TINY, "run_dir=run", "log=none")
    code, _, err = metalearn("train", *TINY, "run_dir=run", "log=none", "seed=1")
    assert code == 2
    assert "seed: 0 there, 1 now" in err


def test_a_mistake_found_late_does_not_hold_the_directory(metalearn):
    code, _, err = metalearn("train", *TINY, "run_dir=run", "log=none", "task.batch=100000")
    assert code == 2, err
    code, _, err = metalearn("train", *TINY, "run_dir=run", "log=none")
    assert code == 0, err


def test_damaged_files_are_named(metalearn, tmp_path):
    metalearn("train", *TINY, "run_dir=run", "log=none")
    for name in ("status.json", "provenance.json"):
        kept = (tmp_path / "run" / name).read_text()
        for damage in ("", "[]", kept[: len(kept) // 2]):
            (tmp_path / "run" / name).write_text(damage)
            for command in (
                ["train", *TINY, "run_dir=run", "log=none"],
                ["report", "run"],
                ["compare", "run"],
            ):
                code, _, err = metalearn(*command)
                assert code in (0, 2), err
                assert code == 0 or name in err
            assert metalearn("list", "runs")[0] == 0
        (tmp_path / "run" / name).write_text(kept)


@pytest.mark.slow
def test_a_failed_job_does_not_end_a_sweep_and_each_run_has_its_own_at_wandb(metalearn, tmp_path):
    code, out, err = metalearn("train", "-m", *TINY, "method.learning_rate=0.1,-1,0.2")

    assert code == 1
    assert out.count(" · finished in ") == 2
    assert "1 jobs of the sweep failed" in err
    assert "method.learning_rate=-1 seed=0: method.learning_rate: got -1.0, must be above 0" in err
    runs = list(tmp_path.glob("runs/supervised_two_moons/sweeps/*/*_seed0/run.yaml"))
    assert len(runs) == 2
    assert all("group: supervised_two_moons/grid-" in run.read_text() for run in runs)
    assert len(list(tmp_path.glob("runs/*/sweeps/*/*_seed0/wandb/offline-run-*"))) == 2


EXPORTED = ["example.py", "example.safetensors", "network.pt2", "summary.json", "weights.safetensors"]
CELL = [
    "task=digits",
    "network=darts_cell",
    "network.cells=3",
    "network.channels=2",
    "network.auxiliary=false",
]
LSTM = ["task=python_docs", "task.batch=2", "task.time=4", "network=lstm_lm", "network.units=4"]
HYPER = [*LSTM[:3], "network=hyperlstm_lm", "network.units=4", "network.hyper_units=3", "network.embedding=2"]
RECURRENT = [*LSTM[:3], "network=darts_recurrent_cell", "network.units=4"]
QUICK = ["train.steps=2", "machine=cpu", "log=none", "log.progress=false", "train.test=false"]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(TINY, id="mlp", marks=pytest.mark.slow),
        pytest.param(CELL, id="cell", marks=pytest.mark.slow),
        pytest.param(LSTM, id="lstm", marks=pytest.mark.slow),
        pytest.param(HYPER, id="hyperlstm", marks=pytest.mark.slow),
        pytest.param(RECURRENT, id="recurrent cell", marks=pytest.mark.slow),
    ],
)
def test_export_gives_the_network_without_this_package(metalearn, tmp_path, parts):
    metalearn("train", *parts, *QUICK, "run_dir=run", "train.evaluate_every=0")
    code, out, _ = metalearn("export", "run")

    assert code == 0
    assert {f"run/export/{name}" for name in EXPORTED} <= set(out.split())
    (tmp_path / "run/export/metalearn.py").write_text("raise ImportError('the example needs metalearn')")
    ran = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path / "run/export",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.rpartition(":")[2]) < 1e-5


def test_exported_classifier_takes_any_batch_and_the_weights_of_its_file(metalearn, tmp_path):
    metalearn("train", *TINY, "run_dir=run", "log=none")
    metalearn("export", "run")
    program = torch.export.load(tmp_path / "run/export/network.pt2").module()
    weights = load_file(tmp_path / "run/export/weights.safetensors")
    again = {name.removeprefix("network."): leaf for name, leaf in program.state_dict().items()}
    torch.testing.assert_close(again, weights, rtol=0, atol=0)
    assert program(torch.randn(7, 2)).shape == (7, 2)


DARTS = ["quickstart/darts_digits", "network.cells=3", "network.channels=2", "task.batch=8", "log=none"]


def _replicate(folder, *arguments, **options):
    command = [sys.executable, "-m", "metalearn", "replicate", *DARTS, *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


@pytest.mark.slow
def test_replicate_is_stopped_and_goes_on(tmp_path):
    first = _replicate(tmp_path, "--seeds", "0", "train.steps=12")
    metrics = tmp_path / "runs/quickstart/darts_digits/search_seed0/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=120)
    assert first.returncode == 143, out
    assert "the same command goes on from there" in out

    second = _replicate(tmp_path, "--seeds", "0", "train.steps=12")
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0, out
    assert out.count("finished in") == 3
    assert "no claim" in out  # one seed
    states = [json.loads(path.read_text())["state"] for path in tmp_path.glob("runs/*/*/*/status.json")]
    assert states == ["finished"] * 3
    assert (tmp_path / "runs/quickstart/darts_digits/report.html").exists()


@pytest.mark.slow
def test_replicate_shows_what_failed_and_runs_the_rest(tmp_path):
    # a search cannot step so far that the loss overflows; the random cells do not need it
    ran = _replicate(tmp_path, "--seeds", "0", "train.steps=3", "method.learning_rate=1e30")
    out, _ = ran.communicate(timeout=300)
    assert ran.returncode == 1, out
    assert "diverged" in out
    assert "did not finish; the same command tries them again" in out


@pytest.mark.slow
def test_replicate_runs_a_plain_recipe_over_seeds(tmp_path):
    toy = [
        "quickstart/hyperlstm_python_docs_lstm",
        "network.units=4",
        "train.steps=3",
        "log=none",
        "--seeds",
        "4,7",
    ]
    command = [sys.executable, "-m", "metalearn", "replicate", *toy]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "hyperlstm_python_docs_lstm" in ran.stdout
    assert "4, 7" in ran.stdout
    assert "claim" not in ran.stdout


@pytest.mark.slow
def test_a_killed_worker_costs_one_run(tmp_path):
    parent = _replicate(tmp_path, "--seeds", "0", "--jobs", "1", "train.steps=30")
    metrics = tmp_path / "runs/quickstart/darts_digits/search_seed0/metrics.jsonl"
    while not metrics.exists() and parent.poll() is None:
        time.sleep(0.05)
    os.kill(json.loads((metrics.parent / "lock").read_text())["pid"], signal.SIGKILL)
    out, _ = parent.communicate(timeout=300)
    assert parent.returncode == 1, out
    assert "search · seed 0 · failed" in out
    assert "retrain · seed 0 · skipped" in out
    assert "random · seed 0 · finished" in out


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    parent = _replicate(tmp_path, "--seeds", "0", "--jobs", "1")
    metrics = tmp_path / "runs/quickstart/darts_digits/search_seed0/metrics.jsonl"
    while not metrics.exists() and parent.poll() is None:
        time.sleep(0.05)
    holder = json.loads((metrics.parent / "lock").read_text())["pid"]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(30)
    for _ in range(600):
        try:
            os.kill(holder, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker went on for a minute without its parent")
