"""A run directory belongs to one process and one configuration."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from noisy_quadratic import NoisyQuadratic, configuration, train
from omegaconf import OmegaConf

from metalearn.registry import UserError
from metalearn.train import lock as lock_module
from metalearn.train import provenance
from metalearn.train.files import read_json
from metalearn.train.run_directory import open_run

COMMAND = ["metalearn", "train", "task=digits"]


def test_new_directories_are_never_shared(tmp_path):
    config = dataclasses.replace(configuration(None), runs=str(tmp_path), name="darts/digits")
    first, second = open_run(config, command=COMMAND), open_run(config, command=COMMAND)
    assert first.path != second.path
    assert first.path.parent == second.path.parent == tmp_path / "darts" / "digits"
    assert "_seed3" in first.path.name
    first.close()
    second.close()


@pytest.mark.parametrize("name", ["../up", "a/../b", "/abs", "", "a//b", ".hidden", "a b"])
def test_a_name_stays_below_runs(tmp_path, name):
    config = dataclasses.replace(configuration(None), runs=str(tmp_path), name=name)
    with pytest.raises(UserError, match="name: got"):
        open_run(config, command=COMMAND)


def test_what_a_run_directory_holds(tmp_path):
    run = train(configuration(tmp_path / "run"), NoisyQuadratic())
    made = read_json(run / "provenance.json")
    assert made["versions"]["torch"].startswith("2.")
    assert set(made["versions"]) >= {"python", "metalearn", "hydra-core", "wandb", "numpy"}
    assert made["hardware"]["threads"] >= 1
    assert made["hardware"]["cores"] == os.cpu_count()
    assert made["seed"] == 3
    assert made["command"][:2] == ["metalearn", "train"]
    assert read_json(run / "status.json") == {"state": "finished", "step": 20, "message": ""}
    assert os.uname().nodename not in (run / "run.yaml").read_text()


def test_the_commit_is_this_checkouts():
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    if head.returncode:
        pytest.skip("not in a git checkout")
    found = provenance.git()
    assert found is not None
    assert found["commit"] == head.stdout.strip()


def test_asking_git_writes_nothing(tmp_path):
    """A run that is killed while git refreshes its index would leave its lock, which stops every commit."""

    def git(*arguments):
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    file, index = tmp_path / "file", tmp_path / ".git" / "index"
    git("init")
    file.write_text("same")
    git("add", "file")
    git("commit", "-m", "first")
    os.utime(file, (1, 1))  # git status would like to note the new time
    before = index.read_bytes()
    assert provenance._git(tmp_path, "status", "--porcelain") == ""
    assert index.read_bytes() == before
    git("status")
    assert index.read_bytes() != before


def test_the_stored_configuration_composes_to_itself(tmp_path):
    from hydra import compose, initialize_config_dir

    config = configuration(tmp_path / "run")
    open_run(config, command=COMMAND).close()
    with initialize_config_dir(str(tmp_path / "run"), version_base="1.3"):
        again = OmegaConf.to_container(compose("run"))
    assert isinstance(again, dict)
    assert again.pop("run_dir") is None, "running it anew makes a new directory"
    expected = dataclasses.asdict(config)
    expected.pop("run_dir")
    for group in ("task", "network", "method", "hypergradient"):
        assert again.pop(group) == {"name": "none"}
        expected.pop(group)
    assert again == expected


def test_task_and_changed_versions_are_recorded(tmp_path, capsys, monkeypatch):
    config = configuration(tmp_path / "run")
    with open_run(config, command=COMMAND) as directory:
        directory.record(task={"digest": "abc"})
        identity = directory.wandb_id
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "1.0"})
    with open_run(config, command=COMMAND) as directory:
        directory.record(task={"digest": "xyz"})
        assert directory.wandb_id == identity
    made = read_json(tmp_path / "run" / "provenance.json")
    assert made["task"] == {"digest": "xyz"}
    assert made["history"][0]["task"] == {"digest": "abc"}
    said = capsys.readouterr().err
    assert "torch 2." in said
    assert "-> 1.0" in said
    assert "digest abc -> xyz" in said


def begin(path):
    """A run that got as far as its first row."""
    open_run(configuration(path), command=COMMAND).close()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')


def test_before_the_first_row_the_configuration_may_change(tmp_path):
    open_run(configuration(tmp_path / "run"), command=COMMAND).close()
    open_run(configuration(tmp_path / "run", steps=21), command=COMMAND).close()
    assert OmegaConf.load(tmp_path / "run" / "run.yaml").train.steps == 21


def test_a_changed_configuration_is_refused(tmp_path):
    begin(tmp_path / "run")
    config = configuration(tmp_path / "run", steps=21, log_every=2)
    config.seed = 4
    config.method = _Options("darts")
    with pytest.raises(UserError) as refusal:
        open_run(config, command=COMMAND)
    text = str(refusal.value)
    assert "seed: 3 there, 4 now" in text
    assert "train.steps: 20 there, 21 now" in text
    assert "train.log_every: 1 there, 2 now" in text
    assert "method.name: 'none' there, 'darts' now" in text
    assert "train.keep" not in text.split("free to change")[0]
    open_run(configuration(tmp_path / "run"), command=COMMAND).close()


def test_what_changes_no_number_may_change(tmp_path, capsys):
    begin(tmp_path / "run")
    config = configuration(tmp_path / "run", minutes=5.0, keep=7, log="offline")
    config.data_dir, config.download, config.runs = "elsewhere", True, "other"
    config.machine.threads = 2
    open_run(config, command=COMMAND).close()
    assert "machine.threads was 1 and is 2: results may differ" in capsys.readouterr().err
    assert OmegaConf.load(tmp_path / "run" / "run.yaml").train.keep == 7


def test_foreign_folders_and_files_are_refused(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis.tex but no run.yaml"):
        open_run(configuration(tmp_path / "home"), command=COMMAND)
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["thesis.tex"]
    with pytest.raises(UserError, match="cannot make the run directory"):
        open_run(configuration(tmp_path / "home" / "thesis.tex"), command=COMMAND)
    with pytest.raises(UserError, match="cannot make the run directory"):
        open_run(configuration(tmp_path / "home" / "thesis.tex" / "run"), command=COMMAND)


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(tmp_path):
    if os.geteuid() == 0:
        read_only = Path("/proc/1")
    else:
        read_only = tmp_path / "read_only"
        read_only.mkdir(mode=0o500)
    config = dataclasses.replace(configuration(None), runs=str(read_only))
    method = NoisyQuadratic()
    with pytest.raises(UserError, match="cannot make the run directory"):
        train(config, method)
    assert method.calls == []


def test_the_lock_names_its_holder_and_is_freed(tmp_path):
    config = configuration(tmp_path / "run")
    with open_run(config, command=COMMAND):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            open_run(config, command=COMMAND)
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    open_run(config, command=COMMAND).close()


def test_a_stale_lock_is_taken_over(tmp_path, capsys):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text(json.dumps({"pid": dead.pid, "host": "x" * 30}))
    open_run(configuration(tmp_path / "run"), command=COMMAND).close()
    assert f"taking over the lock of process {dead.pid}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pid", "host", "free"), [("dead", "here", True), ("live", "here", False), ("dead", "away", False)]
)
def test_without_kernel_locks_the_pid_decides(tmp_path, monkeypatch, pid, host, free):
    def no_locks(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(lock_module.fcntl, "flock", no_locks)
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    holder = {
        "pid": dead.pid if pid == "dead" else os.getppid(),
        "host": os.uname().nodename if host == "here" else "away",
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text(json.dumps(holder))
    if free:
        open_run(configuration(tmp_path / "run"), command=COMMAND).close()
    else:
        with pytest.raises(UserError, match=f"process {holder['pid']} on"):
            open_run(configuration(tmp_path / "run"), command=COMMAND)


def test_what_breaks_before_the_first_step_is_noted(tmp_path):
    with pytest.raises(UserError), open_run(configuration(tmp_path / "run"), command=COMMAND):
        raise UserError("mnist: no such file\nmore")
    status = read_json(tmp_path / "run" / "status.json")
    assert status == {"state": "failed", "step": 0, "message": "mnist: no such file"}


@pytest.mark.slow
def test_a_locale_without_unicode_and_no_home(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LANG", "LC_ALL", "PYTHONUTF8")}
    program = str(Path(__file__).with_name("noisy_quadratic.py"))
    run = tmp_path / "läuft"
    done = subprocess.run(
        [sys.executable, program, str(run), "0", "steps=3"],
        env={**environment, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert read_json(run / "status.json")["state"] == "finished"


@dataclasses.dataclass
class _Options:
    name: str
