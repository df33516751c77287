# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""MAML's meta-gradient equals learn2learn's.

Parity with `higher` (SGD, momentum) and TorchOpt's MetaAdam, on an MLP, an LSTM, a gated cell and a BatchNorm
convnet, is in test_networks.py.
"""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import ForwardOptions, UnrolledOptions
from metalearn.hypergradient.forward import Forward
from metalearn.hypergradient.unroll import Unrolled
from metalearn.inner_optimizers import sgd
from metalearn.problem import Inner, Problem
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import add, zeros_like

RATE, TASKS = 0.3, 3


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))


def convnet():
    """Two blocks of convolution, batch normalisation by the batch's statistics, and pooling."""
    layers = []
    for channels in (1, 3):
        norm = nn.BatchNorm2d(3, track_running_stats=False)
        layers += [nn.Conv2d(channels, 3, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3, 3))


WAYS = {
    "unrolled": Unrolled(UnrolledOptions("unrolled", False)),
    "recomputed": Unrolled(UnrolledOptions("unrolled", True)),
    "forward": Forward(ForwardOptions("forward", 128)),
}


class Adaptation(Problem):
    """MAML: meta is the initialisation, an inner run moves away from it."""

    def __init__(self, module, second):
        self.module, self.second_derivatives = module, second

    def init(self, meta, rng):
        return Inner(zeros_like(meta), {})

    def inner_loss(self, meta, params, batch):
        return cross_entropy(functional_call(self.module, add(meta, params), (batch.x,)), batch.y)

    def update(self, meta, inner, grads):
        return sgd(inner.params, inner.slots, grads, RATE, 0.0, 0.0)

    outer_loss = inner_loss


def examples(task, part):
    rng = generator("task", task, part)
    x = torch.randn(6, 1, 4, 4, generator=rng, dtype=torch.float64)
    return Batch(x, torch.randint(3, (6,), generator=rng), (task, part))


def module_of(make):
    with seeded("network"):
        return make().double()


def ours(way, make, steps, first_order):
    """The mean hypergradient of the tasks, and the mean loss after adaptation."""
    problem = Adaptation(module_of(make), not first_order)
    meta = {key: leaf.detach().clone() for key, leaf in problem.module.named_parameters()}
    found = []
    for task in range(TASKS):
        segment = Segment([examples(task, "support")] * steps, {steps: examples(task, "query")})
        found.append(
            WAYS[way].estimate(
                problem, meta, WAYS[way].init(problem, meta, generator()), segment, generator()
            )
        )
    grad = {key: torch.stack([one.grad[key] for one in found]).mean(0) for key in meta}
    return grad, torch.stack([one.loss for one in found]).mean()


def theirs(learn2learn, make, steps, first_order):
    maml = learn2learn.algorithms.MAML(copy.deepcopy(module_of(make)), lr=RATE, first_order=first_order)
    total = torch.zeros((), dtype=torch.float64)
    for task in range(TASKS):
        learner = maml.clone()
        support, query = examples(task, "support"), examples(task, "query")
        for _ in range(steps):
            learner.adapt(cross_entropy(learner(support.x), support.y))
        total = total + cross_entropy(learner(query.x), query.y) / TASKS
    total.backward()
    return {key: leaf.grad for key, leaf in maml.module.named_parameters()}, total.detach()


@pytest.fixture(scope="module")
def learn2learn():
    return pytest.importorskip("learn2learn")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("make", [mlp, convnet])
def test_maml_equals_learn2learn(make, steps, first_order, way, learn2learn):
    grad, loss = ours(way, make, steps, first_order)
    expected, total = theirs(learn2learn, make, steps, first_order)
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, total)


@pytest.mark.slow
@pytest.mark.parametrize("make", [mlp, convnet])
def test_orders_differ_here(make, learn2learn, relative_error):
    """The agreement would see one order taken for the other."""
    grads = [theirs(learn2learn, make, 5, first_order)[0] for first_order in (False, True)]
    assert relative_error(*grads) > 0.05
