"""W&B gets what metrics.jsonl has, one run a job, and can end no run. Read back by W&B's own inspector."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from noisy_quadratic import NoisyQuadratic, configuration, train
from PIL import Image

from metalearn.train import tracking
from metalearn.train.files import read_json
from metalearn.train.rows import read_rows


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    wandb.teardown()


class Pictured(NoisyQuadratic):
    """Leaves pictures."""

    def artifacts(self, folder):
        super().artifacts(folder)
        Image.new("RGB", (4, 4)).save(folder / "curve.png")
        (folder / "cell.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")


@pytest.mark.slow
def test_two_jobs_of_one_process_are_two_runs(tmp_path):
    for name in ("a", "b"):
        train(configuration(tmp_path / name, "offline"), Pictured())
    seen = [_summary(tmp_path / name) for name in ("a", "b")]
    assert seen[0]["run_id"] != seen[1]["run_id"]
    for name, found in zip("ab", seen, strict=True):
        assert found["state"] == "finished"
        assert found["exit_code"] == 0
        assert found["config"]["train"]["steps"] == 20
        assert found["tags"] == ["test"]
        assert found["run_id"] == read_json(tmp_path / name / "provenance.json")["wandb_id"]
    records = _records(tmp_path / "a")
    run = next(record["run"] for record in records if "run" in record)
    assert (run["run_group"], run["job_type"]) == ("noisy_quadratic", "train")
    assert any("artifact" in record for record in records)
    pictures = [path.suffix for path in (tmp_path / "a" / "wandb").rglob("media/**/*") if path.is_file()]
    assert sorted(pictures) == [".html", ".png"]


def test_rows_are_those_of_metrics_jsonl(tmp_path):
    run = train(configuration(tmp_path / "run", "offline"), NoisyQuadratic())
    merged: dict[int, dict[str, float]] = {}
    for row in read_rows(run / "metrics.jsonl"):
        merged.setdefault(row["step"], {}).update(row)
    items = [record["history"]["item"] for record in _records(run) if "history" in record]
    tracked = [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]
    assert tracked == list(merged.values())


@pytest.mark.slow
def test_a_failed_and_resumed_run_keeps_its_id(tmp_path):
    class Faulty(NoisyQuadratic):
        def step(self, index):
            if index == 7:
                raise ValueError("no")
            return super().step(index)

    config = configuration(tmp_path / "run", "offline")
    with pytest.raises(ValueError, match="no"):
        train(config, Faulty())
    first = _summary(tmp_path / "run")
    assert first["exit_code"] == 1
    (fragment,) = _fragments(tmp_path / "run")
    fragment.rename(tmp_path / "run" / "wandb" / "kept-first-fragment")
    train(config, NoisyQuadratic())
    second = _summary(tmp_path / "run")
    assert second["run_id"] == first["run_id"]
    assert second["step"] == 20


def test_no_key_goes_on_offline_with_one_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    run = train(configuration(tmp_path / "run", "wandb"), NoisyQuadratic())
    assert capsys.readouterr().err.count("going on offline") == 1
    assert _summary(run)["step"] == 20
    assert read_json(run / "status.json")["state"] == "finished"


@pytest.mark.slow
def test_no_server_goes_on_offline_in_bounded_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_SECONDS", 3.0)
    run = train(configuration(tmp_path / "run", "wandb"), NoisyQuadratic())
    assert capsys.readouterr().err.count("going on offline") == 1
    assert _summary(run)["step"] == 20


@pytest.mark.parametrize("broken", ["init", "log", "log_artifact", "finish"])
def test_whatever_wandb_raises_the_run_ends_well(tmp_path, capsys, monkeypatch, broken):
    class Moody:
        id = "x"

        def __getattr__(self, name):
            def call(*_, **__):
                if name == broken:
                    raise OSError("server on fire")

            return call

    def init(**_):
        if broken == "init":
            raise ValueError("not today")
        return Moody()

    monkeypatch.setattr(wandb, "init", init)
    plain = train(configuration(tmp_path / "plain"), NoisyQuadratic())
    run = train(configuration(tmp_path / "run", "offline"), Pictured())
    assert (run / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    assert read_json(run / "status.json")["state"] == "finished"
    assert capsys.readouterr().err.count("W&B stopped while") == 1


@pytest.mark.slow
def test_under_a_sweeps_agent_every_job_is_one_run(tmp_path, monkeypatch):
    """The agent's id is the first run's alone, in this process too, and stays with it when it goes on."""
    monkeypatch.setenv("WANDB_PROJECT", "of_the_sweep")
    _start_agent(monkeypatch, "chosen1")
    half = configuration(tmp_path / "a", "offline", stop_at=10)
    train(half, NoisyQuadratic())
    train(configuration(tmp_path / "b", "offline"), NoisyQuadratic())
    first, other = _run_record(tmp_path / "a"), _run_record(tmp_path / "b")
    assert (first["run_id"], first["sweep_id"], first["project"]) == ("chosen1", "sweep1", "of_the_sweep")
    assert other["run_id"] == read_json(tmp_path / "b" / "provenance.json")["wandb_id"] != "chosen1"
    assert "sweep_id" not in other
    assert first["run_group"] == other["run_group"] == "noisy_quadratic"

    (fragment,) = _fragments(tmp_path / "a")
    fragment.rename(fragment.parent / "first")
    _start_agent(monkeypatch, "chosen2")
    train(configuration(tmp_path / "a", "offline"), NoisyQuadratic())
    assert _run_record(tmp_path / "a")["run_id"] == "chosen1"


def _start_agent(monkeypatch, run):
    wandb.teardown()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", run)


def _run_record(run: Path) -> dict:
    return next(record["run"] for record in _records(run) if "run" in record)


@pytest.mark.slow
def test_none_does_not_import_wandb(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from noisy_quadratic import main; "
        "main(sys.argv[2], '0', 'steps=2'); assert 'wandb' not in sys.modules"
    )
    arguments = [str(Path(__file__).parent), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _fragments(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def _summary(run: Path) -> dict:
    return json.loads(_inspect(run, "--summary"))


def _records(run: Path) -> list[dict]:
    return [json.loads(line) for line in _inspect(run).splitlines()]


def _inspect(run: Path, *options: str) -> str:
    (fragment,) = _fragments(run)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(fragment)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
