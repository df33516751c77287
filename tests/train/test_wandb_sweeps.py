"""The shipped W&B sweeps: what W&B's agent would run is a configuration of ours."""

import itertools
import math

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from metalearn.cli import register_all
from metalearn.compose import CONF, compose
from metalearn.launch import of_agent

SWEEPS = sorted((CONF / "wandb").glob("*.yaml"))


def drawn(parameter):
    """Values that W&B may draw for it."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return parameter["values"]
    return [parameter["min"], math.sqrt(parameter["min"] * parameter["max"]), parameter["max"]]


def command_lines(sweep):
    """What the agent would start, by W&B's own writing of the arguments."""
    points = itertools.product(*(drawn(parameter) for parameter in sweep["parameters"].values()))
    for point in points:
        arguments = {name: {"value": value} for name, value in zip(sweep["parameters"], point, strict=True)}
        written = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
        at = sweep["command"].index("${args_no_hyphens}")
        yield [*sweep["command"][:at], *written], dict(zip(sweep["parameters"], point, strict=True))


FAST = "sweep"  # has a null; the others are the same at more cost
PATHS = [pytest.param(p, id=p.stem, marks=[] if p.stem == FAST else pytest.mark.slow) for p in SWEEPS]


@pytest.mark.parametrize("path", PATHS)
def test_the_agents_command_lines_compose(path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    register_all()
    sweep = yaml.safe_load(path.read_text())
    lines = list(command_lines(sweep))
    for line, point in (lines[0], lines[-1]):
        assert line[:5] == ["${env}", "uv", "run", "metalearn", "train"]
        config = compose(of_agent(line[5:]))
        for key, value in point.items():
            found = config
            for part in key.split("."):
                found = getattr(found, part)
            assert found == (yaml.safe_load(value) if isinstance(value, str) else value), key
        assert config.train.monitor == sweep["metric"]["name"]
        assert {"min": "minimize", "max": "maximize"}[config.train.goal] == sweep["metric"]["goal"]


def test_the_agents_none_is_null(monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert of_agent(["method.clip=None"]) == ["method.clip=None"]
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    assert of_agent(["method.clip=None", "name=NoneSuch"]) == ["method.clip=null", "name=NoneSuch"]
