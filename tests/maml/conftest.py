"""Small few-shot tasks in float64, and how the tests build what they test."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

import metalearn.maml  # noqa: F401
from metalearn.config import MachineOptions
from metalearn.hypergradient.config import ConjugateGradientOptions, UnrolledOptions
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.unroll import Unrolled
from metalearn.machine import Machine
from metalearn.maml.config import Conv4Options, MamlOptions
from metalearn.maml.method import Maml
from metalearn.maml.networks import Conv4
from metalearn.method import Context
from metalearn.networks import Mlp
from metalearn.options import MlpOptions
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Task, TaskSpec

OPTIONS = MamlOptions(
    name="maml", algorithm="maml", backend="metalearn", vectorise=True, inner_steps=2,
    inner_learning_rate=0.1, evaluation_steps=3, proximal=2.0, optimizer="sgd", learning_rate=1.0, clip=None,
)  # fmt: skip
TASKS = 4


class Waves(Task):
    """Four sine waves a meta-batch, five examples to adapt on and three to be scored on."""

    spec = TaskSpec("waves", "few_shot", (1,), 1, {}, "loss", "test", "none", "made", "0", support=5)

    def batch(self, split, index, tasks=TASKS):
        rng = generator("waves", split, index)
        x = 4 * torch.rand(tasks, 8, 1, generator=rng, dtype=torch.float64) - 2
        phase = 3 * torch.rand(tasks, 1, 1, generator=rng, dtype=torch.float64)
        return Batch(x, torch.sin(x - phase), (split, index))

    def batches(self, split):  # noqa: ARG002
        return 1

    def sweep(self, split):
        yield self.batch(split, 10**9, 4)
        yield self.batch(split, 10**9 + 1, 2)

    def loss(self, output, batch):
        return F.mse_loss(output, batch.y)

    def metrics(self, output, batch):
        return {"loss": self.loss(output, batch).detach()}


class Pictures(Waves):
    """Three-way, two-shot: noisy pictures of 16x16, whose classes differ in their mean picture."""

    spec = TaskSpec(
        "pictures", "few_shot", (1, 16, 16), 3, {}, "error", "test", "none", "made", "0", support=6
    )

    def batch(self, split, index, tasks=TASKS):
        rng = generator("pictures", split, index)
        y = torch.arange(3).repeat(3).expand(tasks, 9).contiguous()
        means = torch.randn(tasks, 3, 1, 16, 16, generator=rng, dtype=torch.float64)
        noise = torch.randn(tasks, 9, 1, 16, 16, generator=rng, dtype=torch.float64)
        return Batch(means.repeat(1, 3, 1, 1, 1) + noise, y, (split, index))

    def loss(self, output, batch):
        return F.cross_entropy(output, batch.y)

    def metrics(self, output, batch):
        wrong = (output.argmax(-1) != batch.y).double().mean()
        return {"loss": self.loss(output, batch).detach(), "error": 100 * wrong}


def machine(processes=None, compile=False):
    made = Machine(MachineOptions("cpu", "cpu", "fp32", compile, True, False, 1, 60.0))
    made.processes = processes or made.processes
    return made


def network_of(task):
    with seeded("network"):
        if task.spec.metric == "loss":
            return Mlp(MlpOptions("mlp", [6], "tanh", None), task.spec).double()
        return Conv4(Conv4Options("conv4", 2, "stride"), task.spec).double()


def estimator_of(algorithm):
    if algorithm == "reptile":
        return None
    if algorithm == "imaml":
        return ConjugateGradient(ConjugateGradientOptions("conjugate_gradient", iterations=30, damping=0.0))
    return Unrolled(UnrolledOptions("unrolled", recompute=False))


def make(task=None, estimator: Any = "of the algorithm", on=None, **fields):
    """A method in float64, one step of which moves meta by minus its gradient."""
    task, options = task or Waves(), dataclasses.replace(OPTIONS, **fields)
    if estimator == "of the algorithm":
        estimator = estimator_of(options.algorithm)
    return Maml(options, Context(task, lambda: network_of(task), estimator, on or machine(), 0, 10))


def gradient_of(method, index=0):
    before = {key: leaf.detach().clone() for key, leaf in method.meta.items()}
    method.step(index)
    return {key: before[key] - leaf.detach() for key, leaf in method.meta.items()}


def adapted(task, meta, support, steps, rate, proximal=0.0, last=False):
    """Where gradient descent on one task ends, written out anew: the network's own weights by name."""
    network = network_of(task)
    start = {key[5:]: leaf for key, leaf in meta.items() if key.startswith("init/")}
    moved = list(start)[-2:] if last else list(start)
    weights = {name: leaf.detach() for name, leaf in start.items()}
    for _ in range(steps):
        leaves = {name: weights[name].clone().requires_grad_() for name in moved}
        loss = task.loss(functional_call(network, weights | leaves, (support.x,)).logits, support)
        loss = loss + sum(proximal / 2 * (leaves[n] - start[n].detach()).square().sum() for n in moved)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        for name, slope in zip(moved, slopes, strict=True):
            by = meta.get(f"rate/{name}", torch.tensor(rate, dtype=torch.float64))
            weights[name] = (weights[name] - by * slope).detach()
    return weights


def query_loss(task, weights, query):
    return task.loss(functional_call(network_of(task), weights, (query.x,)).logits, query)


def episodes(task, index=0):
    x, y, key = task.batch("train", index)
    end = task.spec.support
    return [(Batch(x[i, :end], y[i, :end], key), Batch(x[i, end:], y[i, end:], key)) for i in range(len(x))]


def along(function, meta, direction, radius=1e-5):
    """The central difference of `function` of meta along a direction."""
    ahead, behind = (
        function({key: leaf.detach() + sign * radius * direction[key] for key, leaf in meta.items()})
        for sign in (1, -1)
    )
    return (ahead - behind) / (2 * radius)


@pytest.fixture(scope="session")
def kit():
    return SimpleNamespace(
        make=make, gradient_of=gradient_of, adapted=adapted, query_loss=query_loss, episodes=episodes,
        along=along, machine=machine, network_of=network_of, estimator_of=estimator_of,
        tasks={"waves": Waves, "pictures": Pictures}, options=OPTIONS,
    )  # fmt: skip
