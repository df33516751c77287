"""The command line: what it answers, how fast it starts, and what it says of mistakes."""

import os
import subprocess
import sys

import pytest

from metalearn import cli


def test_help_names_every_command(metalearn):
    code, out, _ = metalearn("--help")
    assert code == 0
    assert all(command in out for command in cli.COMMANDS)


MISTAKES = [  # arguments, what the message must hold
    (["trian"], ["'trian'", "train"]),
    (["train", "task=digit"], ["no task is called 'digit'", "one of: digits"]),
    (["train", "network=darts_supernett"], ["no network", "one of: darts_supernet"]),
    (["train", "method=supervise"], ["no method", "one of: supervised"]),
    (["train", "hypergradient=unroled"], ["no hypergradient", "one of: unrolled"]),
    (["train", "recipe=quickstart/darts"], ["no recipe", "quickstart/darts_digits"]),
    (["train", "train.step=5"], ["train.step: no such option", "one of: steps"]),
    (["train", "+train.step=5"], ["train.step: no such option", "one of: steps"]),
    (["train", "task.bach=5"], ["task.bach: no such option", "one of: batch"]),
    (["train", "train.steps=many"], ["train.steps: got 'many', must be a whole number"]),
    (["train", "train.steps=null"], ["train.steps: has no value; it takes a whole number"]),
    (["train", "network.hidden=3"], ["network.hidden: got 3, must be a list"]),
    (["train", "network.hidden=[8,-1]"], ["network.hidden: got -1, must be at least 1"]),
    (["train", "paper=3"], ["paper: got 3, must be a group with source"]),
    (
        ["train", "recipe=hypernetworks/ptb_char_lstm_1000", "paper.value=low"],
        ["paper.value: got 'low', must be a number or null"],
    ),
    (["train", "log.progress=maybe"], ["log.progress: got 'maybe', must be true or false"]),
    (["train", "machine.threads=100000"], ["machine.threads: got 100000", "at most 1024"]),
    (
        ["train", "mixture=mixture", "mixture.members.quadratics.draw.task.dimension={choice:[2]}"],
        ["+mixture.members.quadratics.draw.task.dimension=..."],
    ),
    (["train", "+foo=1"], ["foo: no such option"]),
    (["train", "~task"], ["task"]),
    (["train", "recipe=quickstart/darts_digits"], ["metalearn replicate", "quickstart/darts_digits_search"]),
    (["replicate", "quickstart", "--seeds", "0,0"], ["--seeds: got 0,0", "different"]),
    (["replicate", "quickstart", "--jobs", "0"], ["--jobs: got 0"]),
    (["train", "train.steps=0"], ["train.steps: got 0, must be at least 1"]),
    (["train", "train.minutes=-1"], ["train.minutes: got -1", "above 0"]),
    (["train", "method.learning_rate=nan"], ["method.learning_rate", "finite"]),
    (["train", "method.learning_rate=inf"], ["method.learning_rate", "finite"]),
    (["train", "machine.precision=fp8"], ["machine.precision: got 'fp8'", "fp32, tf32, bf16"]),
    (["train", "train.goal=up"], ["train.goal: got 'up'", "min, max"]),
    (["train", "seed=-1"], ["seed: got -1, must be at least 0"]),
    (["train", "task.batch=[1,2"], ["task.batch"]),
    (["train", "--config-dir", "nowhere"], ["'nowhere' is no run directory"]),
    (["replicate"], ["NAME"]),
    (["replicate", "quickstrt"], ["no recipe is called 'quickstrt'", "one of: quickstart"]),
    (["replicate", "quickstart", "--seeds", "a"], ["'a'", "0,1,2"]),
    (["replicate", "quickstart", "train.stepz=1"], ["train.stepz", "steps"]),
    (["replicate", "quickstart", "runs=elsewhere"], ["runs=elsewhere", "--runs"]),
    (["replicate", "quickstart", "seed=3"], ["seed=3", "--seeds"]),
    (["report", "nowhere"], ["nowhere"]),
    (["compare", "nowhere"], ["nowhere"]),
    (["export", "nowhere"], ["nowhere"]),
    (["diagnose", "gradient"], ["'gradient'", "hypergradient"]),
    (["diagnose", "hypergradient"], ["problem=NAME", "darts_digits", "--run"]),
    (["diagnose", "hypergradient", "problem=darts_digit"], ["'darts_digit'", "one of: darts_digits"]),
    (
        ["diagnose", "hypergradient", "problem=darts_digits", "estimators=unroled"],
        ["'unroled'", "one of: unrolled"],
    ),
    (["diagnose", "hypergradient", "problem=darts_digits", "draws=1"], ["draws: got 1", "at least 2"]),
    (["diagnose", "hypergradient", "problem=darts_digits", "task.bach=5"], ["task.bach: no such option"]),
    (["diagnose", "hypergradient", "--run", "nowhere"], ["nowhere", "no run directory"]),
    (["list", "task"], ["'task'", "one of: tasks"]),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=[" ".join(line) for line, _ in MISTAKES])
def test_a_mistake_is_one_message(metalearn, arguments, expected, tmp_path):
    code, _, err = metalearn(*arguments)
    assert code == 2
    assert err.startswith("metalearn: ")
    assert "Traceback" not in err
    for part in expected:
        assert part in err
    assert not list(tmp_path.iterdir())  # nothing was started


def test_each_process_of_torchrun_says_which_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["metalearn", "trian"])
    for rank, start in (("0", "metalearn: no command"), ("1", "metalearn: process 1: no command")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            cli.main()
        assert capsys.readouterr().err.startswith(start)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metalearn", "--debug", "trian"])
    with pytest.raises(cli.UserError):
        cli.main()


LIGHT = """
import sys
from metalearn.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "torchvision", "wandb", "matplotlib", "sklearn", "numpy"} & set(sys.modules)
print("HEAVY", sorted(heavy))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "task=digit"], ["train", "--cfg", "job"]], ids=" ".join
)
def test_answers_without_heavy_imports(arguments, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert "HEAVY []" in ran.stdout


@pytest.mark.parametrize("what", ["tasks", "networks", "methods", "hypergradients", "recipes"])
def test_lists(metalearn, what):
    code, out, _ = metalearn("list", what)
    expected = {
        "tasks": "digits", "networks": "hyperlstm_lm", "methods": "darts",
        "hypergradients": "finite_difference", "recipes": "quickstart",
    }  # fmt: skip
    assert code == 0
    assert expected[what] in out


def test_completion_offers_groups_and_keys(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "metalearn", "-sc", "query=bash"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={**os.environ, "COMP_LINE": "metalearn train task=di", "COMP_POINT": "24"},
    )  # fmt: skip
    assert "task=digits" in ran.stdout.split()
