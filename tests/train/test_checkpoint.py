"""What is not a sound checkpoint is never used, and a checkpoint that cannot be written harms no other."""

import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from noisy_quadratic import NoisyQuadratic, configuration, train

from metalearn.registry import UserError
from metalearn.train import checkpoint
from metalearn.train.checkpoint import Checkpoints, Damaged
from metalearn.train.rows import read_rows

STATE = {"step": 4, "best": None, "method": {"w": torch.arange(1000.0), "steps": 3, "names": ["a", (1, 2.5)]}}


@pytest.fixture
def path(tmp_path) -> Path:
    checkpoint.save(tmp_path / "step_0000000004.pt", STATE)
    return tmp_path / "step_0000000004.pt"


def test_what_was_saved_comes_back(path):
    state = checkpoint.load(path)
    torch.testing.assert_close(state["method"]["w"], STATE["method"]["w"], rtol=0, atol=0)
    assert state["method"]["names"] == ["a", (1, 2.5)]
    assert state["format"] == checkpoint.FORMAT
    assert state["suite"]


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.99])
def test_a_torn_checkpoint_is_refused(path, kept):
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(Damaged):
        checkpoint.load(path)


def test_every_flipped_byte_of_a_tensor_is_noticed(path):
    content = path.read_bytes()
    start = content.index(torch.arange(1000.0).numpy().tobytes())
    for offset in (0, 1777, 3999):
        altered = bytearray(content)
        altered[start + offset] ^= 1
        path.write_bytes(altered)
        assert not torch.equal(torch.load(path, weights_only=True)["method"]["w"], STATE["method"]["w"]), (
            "torch alone does not notice"
        )
        with pytest.raises(Damaged, match=r"checksum|unreadable"):
            checkpoint.load(path)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_hostile_checkpoint_is_never_unpickled(tmp_path, form):
    victim, path = tmp_path / "victim", tmp_path / "step_0000000004.pt"
    state = {**STATE, "format": checkpoint.FORMAT, "method": Payload(victim)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(Damaged):
        checkpoint.load(path)
    assert not victim.exists()


def test_a_zip_bomb_is_refused_before_it_unpacks(path):
    bomb = path.with_name("bomb.pt")
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert torch.load(bomb, weights_only=True)["step"] == 4, "torch alone unpacks it"
    with pytest.raises(Damaged, match="compressed"):
        checkpoint.load(bomb)


def test_members_that_overlap_are_refused(path):
    """Two directory entries for the same bytes claim more than the file has."""
    content = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        archive.filelist.extend([largest] * 3)
        archive._didModify = True
    assert path.stat().st_size < len(content) + 3 * largest.file_size
    with pytest.raises(Damaged, match="more bytes"):
        checkpoint.load(path)


def test_another_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    checkpoint.save(tmp_path / "old.pt", STATE)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"format 99 of metalearn .*reads format 1"):
        checkpoint.load(tmp_path / "old.pt")


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".tmp-step_0000000001.pt-77").write_bytes(b"left by kill -9")
    for step in range(5):
        checkpoints.save({**STATE, "step": step}, best=step == 1)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "best.pt",
        "step_0000000003.pt",
        "step_0000000004.pt",
    ]
    best = checkpoints.best(1)
    assert best is not None
    assert best.state["step"] == 1
    assert checkpoints.best(2) is None, "it is of another step"
    Checkpoints(tmp_path, keep=2)
    assert not list(tmp_path.glob(".tmp-*"))


def test_reading_touches_no_file_of_a_run_that_goes_on(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in range(2):
        checkpoints.save({**STATE, "step": step}, best=step == 0)
    checkpoints.path(2).write_bytes(b"torn")
    (tmp_path / ".tmp-step_0000000003.pt-77").write_bytes(b"being written")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    newest, best = checkpoint.read_newest(tmp_path), checkpoint.read_best(tmp_path, 0)
    assert newest is not None
    assert best is not None
    assert (newest.state["step"], best.state["step"]) == (1, 0)
    assert checkpoint.read_best(tmp_path, 1) is None, "it is of another step"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert checkpoint.read_newest(tmp_path / "absent") is None


SELDOM = [pytest.param(kept, marks=pytest.mark.slow) for kept in (0.1, 0.5, 0.99)]


@pytest.mark.parametrize("kept", [0, *SELDOM, "flipped"])
def test_a_torn_newest_falls_back_and_the_run_ends_the_same(tmp_path, capsys, kept):
    whole = train(configuration(tmp_path / "whole"), NoisyQuadratic())
    run = train(configuration(tmp_path / "run"), NoisyQuadratic())
    (run / "status.json").write_text('{"state": "running", "step": 20, "message": ""}')
    newest = run / "checkpoints" / "step_0000000020.pt"
    content = bytearray(newest.read_bytes())
    if kept == "flipped":
        content[len(content) // 2] ^= 4
    else:
        del content[int(kept * len(content)) :]
    newest.write_bytes(content)

    second = NoisyQuadratic()
    train(configuration(tmp_path / "run"), second)

    assert second.calls[0] == 16
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert re.search(r"step_0000000020.pt: damaged .*set aside", capsys.readouterr().err)
    assert (run / "checkpoints" / "step_0000000020.pt.damaged").exists()


def test_all_checkpoints_torn_starts_afresh(tmp_path):
    whole = train(configuration(tmp_path / "whole"), NoisyQuadratic())
    run = train(configuration(tmp_path / "run"), NoisyQuadratic())
    (run / "status.json").unlink()
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(b"")
    second = NoisyQuadratic()
    train(configuration(tmp_path / "run"), second)
    assert second.calls[0] == 0
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_the_global_generators_are_part_of_it(tmp_path):
    checkpoint.seed_all(5)
    checkpoint.save(tmp_path / "a.pt", {"random": checkpoint.random_state()})
    draws = torch.rand(3), random.gauss(0, 1), numpy.random.normal(size=3)
    checkpoint.seed_all(6)
    checkpoint.set_random_state(checkpoint.load(tmp_path / "a.pt")["random"])
    again = torch.rand(3), random.gauss(0, 1), numpy.random.normal(size=3)
    assert torch.equal(draws[0], again[0])
    assert draws[1] == again[1]
    assert (draws[2] == again[2]).all()


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from metalearn.registry import UserError
from metalearn.train import checkpoint
from metalearn.train.rows import RowFile
folder = Path(sys.argv[1])
path = folder / "step_0000000004.pt"
checkpoint.save(path, {"step": 4, "w": torch.ones(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpoint.save(path, {"step": 5, "w": torch.ones(3_000_000)})
except UserError as error:
    print(error)
rows = RowFile(folder / "metrics.jsonl")
try:
    for step in range(100_000):
        rows.append({"step": step, "text": "x" * 1000})
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1 << 12, 1 << 20])
def test_a_full_disk_names_the_file_and_harms_no_other(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith(f"{tmp_path}/step_0000000004.pt: cannot write the checkpoint: ")
    assert "older checkpoints are intact" in said[0]
    assert said[1].startswith(f"{tmp_path}/metrics.jsonl: ")
    assert checkpoint.load(tmp_path / "step_0000000004.pt")["step"] == 4
    assert not list(tmp_path.glob(".tmp-*"))
    steps = [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert steps == list(range(len(steps))), "the torn last row is left out"
