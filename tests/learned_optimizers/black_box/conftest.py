"""Black-box optimizers and their controls as conf/ has them, small, on the tasks that are asked."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

import tasks  # noqa: F401
from metalearn import registry
from metalearn.compose import CONF
from metalearn.config import MachineOptions, typed
from metalearn.learned_optimizers.black_box.controls import BlackBoxControls
from metalearn.learned_optimizers.black_box.search import Search, make_controller
from metalearn.learned_optimizers.black_box.training import BlackBoxOptimizer
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.rng import generator

SMALL = (
    "horizon=5", "valid_functions=6", "test_functions=6", "hidden=4", "slots=5", "width=3", "first_horizon=2",
    "full_horizon_after=4",
)  # fmt: skip
CONTROLS = ("horizon=5", "valid_functions=6", "test_functions=6", "optimizers=[random]", "startup=3")


def options(group, name, *overrides):
    """What conf/ gives, but for lines as `hidden=4`; ranges are not checked."""
    merged = OmegaConf.merge(
        OmegaConf.load(CONF / group / f"{name}.yaml"), OmegaConf.from_dotlist(list(overrides))
    )
    return typed(registry.entry(group, name).options, OmegaConf.to_container(merged), f"{group}.")


def task(name="gaussian_process", *overrides, seed=0):
    sizes = ("batch=4", "dimension=2", "queries=20") if name == "gaussian_process" else ("batch=4",)
    return registry.build(
        "task",
        options("task", name, *sizes, *overrides),
        seed=seed,
        data_dir=Path("none"),
        download=False,
        device=torch.device("cpu"),
    )


def context(of, steps=10, precision="fp32"):
    machine = Machine(
        MachineOptions(
            "cpu", "cpu", precision, compile=False, fused=True, deterministic=False, threads=1, timeout=60
        )
    )
    return Context(of, lambda *_: pytest.fail("no network is wanted"), None, machine, 0, steps)


def method(of, *overrides, steps=10):
    return BlackBoxOptimizer(options("method", "black_box_optimizer", *SMALL, *overrides), context(of, steps))


def controls(of, *overrides, steps=6):
    return BlackBoxControls(
        options("method", "black_box_controls", *CONTROLS, *overrides), context(of, steps)
    )


def search(of, *overrides):
    """A search, its weights in float64, and its options."""
    chosen = options("method", "black_box_optimizer", *SMALL, *overrides)
    controller = make_controller(chosen, of.spec.outputs)
    meta = {key: leaf.double() for key, leaf in controller.init(generator("weights")).items()}
    return Search(chosen, of, controller, context(of).machine), meta, chosen


@pytest.fixture(scope="session")
def box():
    """Builders of all that is tested here."""
    return SimpleNamespace(
        options=options, task=task, context=context, method=method, controls=controls, search=search
    )
