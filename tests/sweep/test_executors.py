"""Every launcher for real: jobs end, fail and die each for itself; leaving one asks for checkpoints."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from metalearn.compose import CONF
from metalearn.launch import launch
from metalearn.registry import UserError
from metalearn.sweep.executor import Job
from metalearn.sweep.executors import build_executor, launcher_options, places
from metalearn.sweep.executors.places import portions, visible_devices
from metalearn.sweep.executors.preemption import Preemptible
from metalearn.sweep.executors.slurm_jobs import SlurmJobs
from metalearn.sweep.executors.task import perform, task_of
from metalearn.work import Outcome

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
from small_jobs import small  # noqa: E402


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("METALEARN_DATA_DIR", "/some/data")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)


def options(launcher, **changes):
    """Those of conf/launcher, with changes."""
    stored = OmegaConf.to_container(OmegaConf.load(CONF / "launcher" / f"{launcher}.yaml"))
    return launcher_options({**stored, **changes})


def job(kind, folder):
    return Job(kind, (kind, str(folder / kind)), folder / kind)


def outcomes(executor, jobs):
    """Run the jobs as a sweep does."""
    waiting, running, found = list(jobs), 0, {}
    while waiting or running:
        while waiting and running < executor.width:
            executor.start(waiting.pop(0))
            running += 1
        for ended, outcome in executor.ended():
            running -= 1
            found[ended.id] = outcome
    return found


EACH = [
    pytest.param("processes", {"jobs": 2, "minutes": 5}, id="processes"),
    pytest.param("joblib", {"jobs": 2}, id="joblib", marks=pytest.mark.slow),
    pytest.param("slurm", {"cluster": "local", "cpus": 1}, id="submitit-local", marks=pytest.mark.slow),
    pytest.param("ray", {"retries": 0}, id="ray", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "changes"), EACH)
def test_jobs_end_fail_die_and_are_stopped_each_for_itself(name, changes, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with build_executor(options(name, **changes), tmp_path, small) as executor:
        found = outcomes(executor, [job(kind, tmp_path) for kind in ("die", "finish", "fail", "again")])
        last = job("last", tmp_path)
        executor.start(last)
        if isinstance(executor, SlurmJobs):
            executor._submit()
        until = time.monotonic() + 60
        while not (last.folder / "begun").exists() and time.monotonic() < until:
            time.sleep(0.02)
        left = time.monotonic()
    assert time.monotonic() - left < 30
    assert found["finish"].state == found["again"].state == "finished"
    folder, threads, devices, data = found["finish"].message.split("|")
    assert (Path(folder), threads, data) == (tmp_path, str(options(name, **changes).cpus), "/some/data")
    assert devices in ("", "None")
    assert found["fail"][:2] == ("failed", "no such luck")
    assert found["die"].state == "failed"
    assert ("log" if name == "slurm" else str(tmp_path / "die")) in found["die"].message
    assert int((last.folder / "checkpoint").read_text()) in (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize(
    ("launcher", "package"), [("joblib", "joblib"), ("slurm", "submitit"), ("ray", "ray")]
)
def test_a_missing_package_is_one_message(launcher, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs the package {package}: uv run --extra {launcher} "):
        build_executor(options(launcher), tmp_path, small)


@pytest.mark.parametrize(
    ("gpus", "shares"),
    [
        (None, ["0", "1", "GPU-x", "7"]),
        (0, []),
        (1, ["0", "1", "GPU-x", "7"]),
        (2, ["0,1", "GPU-x,7"]),
        (3, ["0,1,GPU-x"]),
        (0.5, ["0", "1", "GPU-x", "7"] * 2),
    ],
)
def test_gpus_are_dealt_out(gpus, shares):
    assert portions(gpus, ["0", "1", "GPU-x", "7"]) == shares


def test_what_cuda_would_see(monkeypatch):
    for value, seen in (("3, 5", ["3", "5"]), ("", []), ("2,-1,4", ["2"]), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_devices() == seen


def test_places_go_round_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [place.devices for place in places.places(options("processes", jobs=3))] == ["4", "5", "4"]
    assert [place.devices for place in places.places(options("processes", jobs=1, gpus=0))] == [""]
    monkeypatch.setattr(places, "cores", lambda: 16)
    assert len(places.places(options("processes", gpus=1))) == 2
    assert len(places.places(options("processes", gpus=0, cpus=5))) == 3
    monkeypatch.setattr(places, "_fitting_memory", lambda memory: 2 if memory else None)
    assert len(places.places(options("joblib", gpus=0, memory=8))) == 2


@pytest.mark.parametrize("name", ["processes", "joblib", "ray", "slurm"])
def test_more_gpus_than_there_are_is_one_message(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    changes = {"cluster": "local"} if name == "slurm" else {}
    with pytest.raises(UserError, match=r"launcher\.gpus: got 2, GPUs visible .*: 1; lower it"):
        build_executor(options(name, gpus=2, **changes), tmp_path, small)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("processes", {"gpus": 1, "jobs": 3}, r"launcher\.jobs: got 3, 1 GPUs a job leave 2 GPUs room for 2"),
        ("processes", {"gpus": 1.5}, r"launcher\.gpus: got 1\.5, must be a whole number"),
        ("processes", {"cpus": 1000}, r"launcher\.cpus: got 1000, this machine has"),
        ("processes", {"pin": True, "jobs": 1000}, r"launcher\.pin: 1000 jobs of 1 cores do not fit"),
        ("slurm", {}, r"launcher\.cluster: .*start the sweep on a login node"),
        ("ray", {"memory": 1e9}, r"launcher\.memory: 1e\+09 GB a job are not there"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused(name, changes, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message):
        build_executor(options(name, **changes), tmp_path, small)


def test_a_sweep_and_torchrun_do_not_mix(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="a sweep cannot share processes; start its jobs by torchrun one by one"
    ):
        launch(["-m", "seed=0,1"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "mainframe"}, "launcher: got 'mainframe'; choose one of"),
        ({"job": 1}, r"launcher\.job: no such option"),
        ({"cpus": 0}, r"launcher\.cpus: got 0, must be at least 1"),
    ],
)
def test_options_are_checked(values, message):
    with pytest.raises(UserError, match=message):
        options("joblib", **values)


def test_minutes_end_a_job_after_a_checkpoint(tmp_path):
    outcome = perform(task_of(small, ("last", str(tmp_path / "job")), 1, 0.005))
    assert outcome[:2] == ("interrupted", "ended with a checkpoint after launcher.minutes=0.005")
    assert (tmp_path / "job" / "checkpoint").read_text() == str(int(signal.SIGTERM))


def test_a_signal_outside_the_loop_ends_the_job_alone():
    before = signal.getsignal(signal.SIGTERM)
    task = task_of(_terminated, (), 1, None)
    assert perform(task).state == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def _terminated(_overrides):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    return Outcome("finished", "", 0.0)


def test_a_preempted_job_makes_its_checkpoint_and_is_queued_again(tmp_path, monkeypatch):
    """SLURM sends SIGTERM and submitit's signal together: that is one request, not two."""
    queued = []
    before = signal.signal(signal.SIGUSR2, lambda *_: queued.append((tmp_path / "checkpoint").exists()))
    monkeypatch.setattr("small_jobs.begun", lambda: [os.kill(os.getpid(), n) for n in (15, signal.SIGUSR2)])
    try:
        outcome = Preemptible()(task_of(small, ("last", str(tmp_path)), 1, None))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert outcome.state == "interrupted"
    assert queued == [True]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The commands of SLURM by stand-ins; the scripts that were submitted."""
    programs, jobs = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    jobs.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        line = f'exec {sys.executable} {HERE}/fake_slurm.py {name} "$@"'
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    return lambda: [script.read_text() for script in sorted(jobs.glob("*.sh"))]


@pytest.mark.slow
def test_what_slurm_is_asked_for(slurm, tmp_path):
    """By stand-ins of its commands: one array for the jobs that start together, with all that they need."""
    places = {
        "partition": "gpu",
        "account": "lab",
        "qos": "low",
        "constraint": "a100",
        "gpus": 2,
        "memory": 8,
    }
    given = options("slurm", jobs=2, array_parallelism=7, setup=["module load cuda"], warning=30, **places)
    with build_executor(given, tmp_path / "sweep", small) as executor:
        found = outcomes(executor, [job("finish", tmp_path), job("fail", tmp_path)])
    assert {name: outcome.state for name, outcome in found.items()} == {
        "finish": "finished",
        "fail": "failed",
    }
    (script,) = slurm()
    flags = (
        "partition=gpu account=lab qos=low constraint=a100 gpus-per-node=2 cpus-per-task=4 mem=8GB time=240"
    )
    for flag in [*flags.split(), "signal=USR2@30", "array=0-1%2"]:
        assert f"#SBATCH --{flag}\n" in script
    assert "module load cuda\n" in script


@pytest.mark.slow
def test_a_job_that_a_killed_sweep_left_in_the_queue_is_taken_up(slurm, tmp_path):
    last = job("last", tmp_path)
    killed = build_executor(options("slurm"), tmp_path / "sweep", small)
    killed.start(last)
    killed._submit()
    with build_executor(options("slurm"), tmp_path / "sweep", small) as executor:
        executor.start(last)
        executor._submit()
        until = time.monotonic() + 30
        while not (last.folder / "begun").exists() and time.monotonic() < until:
            time.sleep(0.05)
    assert len(slurm()) == 1
    assert (last.folder / "checkpoint").read_text() == str(int(signal.SIGTERM))


@pytest.mark.slow
def test_submitit_starts_a_preempted_job_again(tmp_path):
    """The first start is warned by SIGUSR2, the second finds what it left; the sweep sees one job."""
    with build_executor(options("slurm", cluster="local", cpus=1), tmp_path, small) as executor:
        found = outcomes(executor, [job("preempted", tmp_path)])
    assert found["preempted"][:2] == ("finished", "went on")
