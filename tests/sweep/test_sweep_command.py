"""What a command line of a sweep means, and what is refused."""

import json
import subprocess
import sys

import pytest

from metalearn.registry import UserError
from metalearn.sweep.definition import Sweep
from metalearn.sweep.reading import read

RATES = "method.learning_rate=0.1,0.01"
LOG = "method.learning_rate=tag(log,interval(1e-4,1))"


def _ids(sweep: Sweep) -> list[str]:
    return [sweep.identity((f"method.learning_rate={rate}",)) for rate in ("0.1", "0.01")]


@pytest.mark.slow
def test_a_jobs_name_is_its_overrides_in_any_order_and_process(launch):
    del launch  # which registers the names
    lines = ["task=two_moons", "train.steps=7", RATES, "log=none", "seed=0,1"]
    one = read(lines)
    two = read([lines[2], "runs=elsewhere", lines[1], lines[0]])
    assert _ids(one) == _ids(two)
    assert _ids(one)[0] != _ids(read(["task=two_moons", "train.steps=8", RATES]))[0]
    program = (
        "from metalearn.cli import register_all; register_all(); from metalearn.sweep.reading import read; "
        f"s = read({lines}); print(s.id, s.identity(('method.learning_rate=0.1',)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [one.id, _ids(one)[0]]


def test_a_job_is_complete_and_groups_its_runs_at_wandb(launch):
    del launch
    sweep = read(["task=two_moons", "sweep.name=s", "runs=a b", RATES])
    job = sweep.job(("method.learning_rate=0.1",), 3, until=5)
    assert job.overrides[-6:] == (
        "method.learning_rate=0.1",
        "seed=3",
        f"run_dir='a b/supervised_two_moons/sweeps/s/{job.id}'",
        "++log.group='supervised_two_moons/s'",
        "log.progress=false",
        "++train.stop_at=5",
    )
    from metalearn.launch import checked

    config = checked(job.overrides)
    assert (config.log.group, config.train.stop_at, config.seed) == ("supervised_two_moons/s", 5, 3)


MISTAKES = [
    (["sweep=tpe", RATES, "sweep.metric=test/error"], "nothing is tuned on test data"),
    (["sweep=tpe"], "nothing is swept"),
    (["sweep=tpe", LOG, "train.evaluate_every=0"], "never measured"),
    (["sweep=tpe", LOG, "train.monitor=null"], "needs a metric"),
    (["sweep.name=../x", RATES], "sweep.name: got '../x'"),
    (["sweep=bohb", RATES], "no sweep is called 'bohb'; choose one of"),
    (["sweep.trial=3", RATES], "sweep.trial: no such option"),
    (["sweep=tpe", "sweep.trials=0", LOG], "sweep.trials: got 0"),
    ([LOG], "choose sweep=random"),
    (["sweep=grid,random", RATES], "must be one value"),
    (["sweep.seeds=[0,1]", "seed=0,1", RATES], "give one of both"),
    (["sweep=halving", "sweep.minimum=3", LOG], "sweep.rungs or sweep.minimum"),
    (["sweep=halving", "train.steps=3,9"], "cannot be swept"),
    (["sweep=hyperband", "sweep.minimum=400", LOG], "no run would be stopped early"),
    (["hydra/launcher=joblib", RATES], "choose launcher="),
    (["run_dir=x", RATES], "each job has a folder"),
    (["method.learning_rat=1,2"], "learning_rat: no such option"),
    (["recipe=quickstart", RATES], "metalearn replicate NAME"),
    (["+sweep.params={method.learning_rate: 3}"], "sweeps nothing"),
    (["sweep.params={method.learning_rate: 3}"], "a command line adds them"),
]


@pytest.mark.parametrize(
    ("lines", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
@pytest.mark.slow
def test_mistakes_are_told_before_anything_runs(launch, tmp_path, lines, message):
    with pytest.raises(UserError) as told:
        launch(*lines)
    assert message in str(told.value).replace("\n", " ")
    assert launch.started == []
    assert not list(tmp_path.glob("runs/*/sweeps/*/*_seed*"))


@pytest.mark.slow
def test_what_is_swept_may_stand_in_a_file_and_the_command_line_wins(launch):
    params = "+sweep.params={method.learning_rate: 'choice(0.1,0.01)', method.weight_decay: 'range(2)'}"
    assert len(launch(params, "method.weight_decay=0")) == 2
    assert "method.weight_decay=0" in launch.started[0].overrides


@pytest.mark.slow
def test_the_configuration_that_all_jobs_share_is_shown(metalearn):
    code, out, _ = metalearn("train", "-m", "task=two_moons", "--cfg", "job", LOG, "sweep=tpe", "seed=0,1")
    assert code == 0
    assert "strategy: tpe" in out
    assert "name: two_moons" in out


@pytest.mark.slow
def test_a_metric_that_no_run_gives_ends_a_search_at_its_first_run(launch):
    with pytest.raises(UserError, match=r"got valid/error, which .* does not give; it has: valid/loss"):
        launch("sweep=random", LOG, "sweep.metric=valid/error")
    assert len(launch.started) == 1


def test_a_dry_run_shows_jobs_and_cost_and_launches_nothing(launch, tmp_path, capsys):
    from metalearn.sweep.command import sweep

    fixed = ["task=two_moons", "network=mlp", "train.steps=27", "train.evaluate_every=1"]
    fixed += [f"runs={tmp_path / 'runs'}"]
    sweep([*fixed, RATES], dry=True)
    said = capsys.readouterr().out
    assert "2 new" in said
    assert "54 steps left, time unknown: no earlier run; run one job first or sweep.measure=true" in said
    assert not (tmp_path / "runs").exists()

    with pytest.raises(UserError):
        launch(RATES, fault=lambda job, _: "failed" if "=0.01" in job.overrides[-5] else None)
    capsys.readouterr()
    sweep([*fixed, RATES], dry=True)
    said = capsys.readouterr().out
    assert "1 finished, 1 failed" in said
    assert "14 steps left at 0.1 s: 1.4 seconds one job at a time (from 2 runs of this sweep)" in said


@pytest.mark.slow
def test_a_dry_run_of_a_search_says_its_rungs_and_its_size(launch, tmp_path, capsys):
    from metalearn.sweep.command import sweep

    fixed = ["task=two_moons", "network=mlp", "train.steps=81", "train.evaluate_every=1", LOG]
    fixed += [f"runs={tmp_path / 'runs'}", "seed=0,1"]
    launch("sweep=random", "sweep.trials=1", LOG)  # the earlier run
    sweep([*fixed, "sweep=hyperband"], dry=True)
    said = capsys.readouterr().out
    assert (
        "bracket 1 of 5: 81 to step 1, then 27 to step 3, then 9 to step 9, then 3 to step 27, then 1" in said
    )
    assert "of the 11583 that 143 whole runs take" in said
    sweep([*fixed, "sweep=tpe"], dry=True)
    said = capsys.readouterr().out
    assert "tpe: 30 points, 0 of them done" in said
    assert "4860 steps left" in said
    assert not list(tmp_path.glob("runs/*/sweeps/tpe*"))


@pytest.mark.slow
def test_best_or_last_value_of_a_run(launch):
    (best,) = launch("method.learning_rate=0.1", "sweep.value=best", "sweep.goal=max")
    assert best["value"] == pytest.approx(2.0)  # 1 + 1/t at t = 1
    (last,) = launch("method.learning_rate=0.1")
    assert last["value"] == pytest.approx(1 + 1 / 27)
    assert json.loads((launch.place / "sweep.json").read_text())["definition"]["strategy"] == "grid"
