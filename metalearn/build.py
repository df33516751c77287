"""From a checked configuration to the live objects of a run."""

from pathlib import Path
from typing import Any, NamedTuple

from metalearn import registry
from metalearn.config import Config
from metalearn.machine import Machine
from metalearn.method import Context, Method
from metalearn.network import Network
from metalearn.registry import UserError
from metalearn.rng import Key, seeded
from metalearn.task import Task, TaskSpec


class Parts(NamedTuple):
    """What a run is made of."""

    machine: Machine
    task: Task
    method: Method


class Builder(NamedTuple):
    """Builds tasks and networks as a run's own are built."""

    config: Config
    machine: Machine

    def task(self, options: Any) -> Task:
        """A task with its data on the device."""
        return registry.build(
            "task",
            options,
            seed=self.config.seed,
            data_dir=Path(self.config.data_dir).expanduser(),
            download=self.config.download,
            device=self.machine.device,
        )

    def network(self, options: Any, spec: TaskSpec, *key: Key) -> Network:
        """A network on the device, drawn under the seed's own stream.

        Equal seeds start from equal weights whatever was built before; a key asks for other weights.
        """
        with seeded(self.config.seed, "network", *key):
            return registry.build("network", options, spec=spec).to(self.machine.device)


def build_task(config: Config, machine: Machine) -> Task:
    """The configured task with its data on the device."""
    return Builder(config, machine).task(config.task)


def build(config: Config) -> Parts:
    """Machine, task and method, from options that `config.resolve` has checked."""
    machine = Machine(config.machine)
    builder = Builder(config, machine)
    task = builder.task(config.task)

    def network(*key: Key) -> Network:
        return builder.network(config.network, task.spec, *key)

    estimator = config.hypergradient and registry.build("hypergradient", config.hypergradient)
    context = Context(
        task,
        network,
        estimator,
        machine,
        config.seed,
        config.train.steps,
        rule=config.rule,
        mixture=config.mixture,
        build=builder,
    )
    method = registry.build("method", config.method, context=context)
    for group, value in (("rule", config.rule), ("mixture", config.mixture)):
        if value is not None and group not in method.uses:
            raise UserError(
                f"method {config.method.name} uses no {group}, and {group}={value.name} was given; set "
                f"{group}=none, or choose method=learned_optimizer"
            )
    return Parts(machine, task, method)
