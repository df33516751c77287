"""A small task, and how the tests build what they test."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import metalearn.hyperparameters  # noqa: F401
from metalearn.config import MachineOptions
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.hyperparameters.config import HyperparametersOptions, RandomSearchOptions
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.networks import Mlp
from metalearn.options import MlpOptions
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Task, TaskSpec


class Blobs(Task):
    """Three Gaussian clusters in four dimensions; minibatches of 16, sweeps of two batches, one shorter."""

    spec = TaskSpec("blobs", "classification", (4,), 3, {"train": 100}, "error", "test", "none", "made", "0")

    def batch(self, split, index, size=16):
        rng = generator("blobs", split, index)
        y = torch.randint(3, (size,), generator=rng)
        x = 2 * F.one_hot(y, 4) + torch.randn(size, 4, generator=rng)
        return Batch(x.to(torch.get_default_dtype()), y, (split, index))

    def batches(self, split):  # noqa: ARG002
        return 1

    def sweep(self, split):
        yield self.batch(split, 10**9, 40)
        yield self.batch(split, 10**9 + 1, 10)

    def loss(self, output, batch):
        return F.cross_entropy(output, batch.y)

    def metrics(self, output, batch):
        wrong = (output.argmax(-1) != batch.y).double().mean()
        return {"loss": self.loss(output, batch).detach(), "error": 100 * wrong}


LEARNED = HyperparametersOptions(
    name="hyperparameters", horizon=4, runs=2, optimizer="sgd", momentum=0.9, betas=[0.9, 0.999],
    epsilon=1e-8, learning_rates="global", penalties="none", learning_rate=0.1, penalty=0.01,
    evaluation_runs=4, outer_batches=2, outer_every=0, meta_learning_rate=0.2, clip=None,
)  # fmt: skip
SEARCHED = RandomSearchOptions(
    name="random_search", horizon=4, runs=2, optimizer="sgd", momentum=0.9, betas=[0.9, 0.999],
    epsilon=1e-8, learning_rates="per_layer", penalties="global", learning_rate=0.1, penalty=0.01,
    evaluation_runs=4, learning_rate_range=[0.001, 1.0], penalty_range=[1e-6, 0.1],
)  # fmt: skip


def learned(**changes) -> HyperparametersOptions:
    return dataclasses.replace(LEARNED, **changes)


def searched(**changes) -> RandomSearchOptions:
    return dataclasses.replace(SEARCHED, **changes)


def context(task=None, estimator=None, seed=0, deviation=None) -> Context:
    task = task or Blobs()
    machine = Machine(
        MachineOptions(
            "cpu", "cpu", "fp32", compile=False, fused=True, deterministic=False, threads=1, timeout=60
        )
    )

    def network(*key):
        with seeded(seed, "network", *key):
            return Mlp(MlpOptions("mlp", [3], "tanh", deviation), task.spec)

    estimator = estimator or Unrolled(UnrolledOptions("unrolled", False))
    return Context(task, network, estimator, machine, seed, steps=10)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def kit():
    """The small task, and builders of options and contexts."""
    return SimpleNamespace(Blobs=Blobs, learned=learned, searched=searched, context=context)
