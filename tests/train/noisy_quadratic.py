"""A small real method for the tests of the loop: momentum SGD on a quadratic with masked gradients."""

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch

from metalearn.config import Config, LogOptions, MachineOptions, TrainOptions
from metalearn.method import Method
from metalearn.rng import generator
from metalearn.task import Metrics, Split
from metalearn.train.loop import run
from metalearn.train.run_directory import open_run

CURVATURE = torch.tensor([1.0, 3.0, 10.0, 0.3])


class NoisyQuadratic(Method):
    """loss = sum(c w^2) / 2 under a dropout mask of its index, and noise from the global generators."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.w = torch.ones(4)
        self.momentum = torch.zeros(4)
        self.average = torch.zeros(4)
        self.seconds = seconds
        self.calls: list[Any] = []

    def step(self, index: int) -> Metrics:
        time.sleep(self.seconds)
        self.calls.append(index)
        mask = (torch.rand(4, generator=generator(7, index)) > 0.2).float()
        noise = torch.randn(4) * 0.01 + random.gauss(0, 0.01) + float(numpy.random.normal(0, 0.01))
        gradient = CURVATURE * self.w * mask + noise
        self.momentum = 0.9 * self.momentum + gradient
        self.w = self.w - 0.01 * self.momentum
        self.average = 0.9 * self.average + 0.1 * self.w
        return {"train/loss": self._loss(self.w), "train/norm": self.w.norm()}

    def evaluate(self, split: Split) -> Metrics:
        time.sleep(self.seconds)
        self.calls.append(split)
        return {f"{split}/loss": self._loss(self.average), f"{split}/largest": self.average.abs().max()}

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w, "slots": [self.momentum, {"average": self.average}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.w = state["w"]
        self.momentum, rest = state["slots"]
        self.average = rest["average"]

    def artifacts(self, folder: Path) -> None:
        (folder / "weights.txt").write_text(repr(self.w.tolist()))

    def _loss(self, w: torch.Tensor) -> torch.Tensor:
        return (CURVATURE * w * w).sum() / 2


def configuration(run_dir: Path | None, log: str = "none", **train: Any) -> Config:
    """A whole configuration that needs no registered names."""
    cadence = {"log_every": 1, "evaluate_every": 5, "checkpoint_every": 4, "keep": 2, "minutes": None}
    selection = {"monitor": "valid/loss", "goal": "min", "select": "last", "test": True}
    selection |= {"diagnose_every": 0, "diagnose": []}
    return Config(
        seed=3,
        data_dir="data",
        download=False,
        runs=str(run_dir.parent) if run_dir else "runs",
        run_dir=str(run_dir) if run_dir else None,
        name="noisy_quadratic",
        role="train",
        task=None,
        network=None,
        method=None,
        hypergradient=None,
        train=TrainOptions(**{"steps": 20, **cadence, **selection, **train}),
        machine=MachineOptions("cpu", "cpu", "fp32", False, True, True, 1, 60),
        log=LogOptions(log, "metalearn-tests", None, ["test"], False),
        paper=None,
    )


def train(config: Config, method: Method) -> Path:
    """What the command line does with a configuration; returns the run directory."""
    with open_run(config, command=["metalearn", "train", "method=noisy_quadratic"]) as directory:
        run(config, method, directory)
        return directory.path


def main(run_dir: str, seconds: str, *changes: str) -> None:
    """Run in a process of its own, to be signalled and killed."""
    options = dict(change.split("=") for change in changes)
    log = options.pop("log", "none")
    numbers = {key: int(value) for key, value in options.items()}
    train(configuration(Path(run_dir), log, **numbers), NoisyQuadratic(float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
