"""A method that shares its meta-batch; torchrun would call it as RUN_DIR STEPS [KEY=VALUE ...]."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from metalearn.config import Config, LogOptions, MachineOptions, TrainOptions
from metalearn.machine import Machine
from metalearn.method import Method
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.train import loop
from metalearn.train.run_directory import open_run

TASKS = 8


class ShardedQuadratic(Method):
    """Descends the mean of eight noisy bowls a step; each process sees its part of them."""

    shares_steps = True

    def __init__(self, machine: Machine, dies_at: int, seconds: float) -> None:
        self.processes, self.dies_at, self.seconds = machine.processes, dies_at, seconds
        self.meta = {"w": torch.ones(3), "v": torch.ones(2, dtype=torch.float64)}

    def step(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        if index == self.dies_at and not self.processes.leads:
            os.kill(os.getpid(), signal.SIGKILL)
        tasks = self.processes.share(range(TASKS))
        noise = torch.stack([torch.randn(3, generator=generator(index, task)) for task in tasks])
        squares = noise.double()[:, :2].square().mean(0)
        grads = {"w": self.meta["w"] - noise.mean(0), "v": self.meta["v"] - squares}
        grads = self.processes.average(grads)
        self.meta = {key: leaf - 0.1 * grads[key] for key, leaf in self.meta.items()}
        return {"train/loss": grads["w"].norm()}

    def evaluate(self, split: str) -> dict[str, torch.Tensor]:
        return {f"{split}/loss": self.meta["w"].norm()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.meta)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.meta = dict(state)

    def artifacts(self, folder: Path) -> None:
        torch.save(self.meta, folder / "meta.pt")


def main(run_dir: str, steps: str, *changes: str) -> None:
    options = {"dies_at": -1, "seconds": 0.0, "checkpoint_every": 0, "timeout": 60}
    options |= {key: float(value) for key, value in (change.split("=") for change in changes)}
    machine_options = MachineOptions("cpu", "cpu", "fp32", False, True, True, 1, options["timeout"])
    cadence = {"log_every": 1, "evaluate_every": 5, "checkpoint_every": int(options["checkpoint_every"])}
    rest = {"keep": 2, "minutes": None, "monitor": None, "goal": "min", "select": "last", "test": True}
    config = Config(
        seed=0, data_dir="data", download=False, runs=str(Path(run_dir).parent), run_dir=run_dir,
        name="sharded", role="train", task=None, network=None, method=None, hypergradient=None,
        train=TrainOptions(steps=int(steps), **cadence, **rest, diagnose_every=0, diagnose=[]),
        machine=machine_options, log=LogOptions("none", "metalearn-tests", None, ["test"], False), paper=None,
    )  # fmt: skip
    machine = Machine(machine_options)
    method = ShardedQuadratic(machine, int(options["dies_at"]), options["seconds"])
    if not machine.processes.leads:
        loop.follow(method, machine.processes)
        return
    with open_run(config, command=["sharded"]) as directory:
        if directory.finished:
            loop.dismiss(machine.processes)
        else:
            loop.run(config, method, directory, processes=machine.processes)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
