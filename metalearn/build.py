"""From a checked configuration to the live objects of a run."""

from pathlib import Path
from typing import NamedTuple

from metalearn import registry
from metalearn.config import Config
from metalearn.machine import Machine
from metalearn.method import Context, Method
from metalearn.network import Network
from metalearn.rng import Key, seeded
from metalearn.task import Task


class Parts(NamedTuple):
    """What a run is made of."""

    machine: Machine
    task: Task
    method: Method


def build_task(config: Config, machine: Machine) -> Task:
    """The configured task with its data on the device."""
    return registry.build(
        "task",
        config.task,
        seed=config.seed,
        data_dir=Path(config.data_dir).expanduser(),
        download=config.download,
        device=machine.device,
    )


def build(config: Config) -> Parts:
    """Machine, task and method, from options that `config.resolve` has checked.

    A network is built as `Class(options, spec)` under the seed's own stream, so equal seeds start from
    equal weights whatever was built before; a key asks for other weights.
    """
    machine = Machine(config.machine)
    task = build_task(config, machine)

    def network(*key: Key) -> Network:
        with seeded(config.seed, "network", *key):
            return registry.build("network", config.network, spec=task.spec).to(machine.device)

    estimator = config.hypergradient and registry.build("hypergradient", config.hypergradient)
    context = Context(task, network, estimator, machine, config.seed, config.train.steps)
    return Parts(machine, task, registry.build("method", config.method, context=context))
