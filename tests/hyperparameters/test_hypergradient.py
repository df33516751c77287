"""Hypergradients of whole inner runs, held to central differences of training by torch's own optimizers."""

import pytest
import torch

from metalearn.hypergradient.config import (
    ConjugateGradientOptions,
    EvolutionOptions,
    ForwardOptions,
    NeumannOptions,
    TruncatedOptions,
    UnrolledOptions,
)
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.evolution import Evolution
from metalearn.hypergradient.forward import Forward
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.unroll import Truncated, Unrolled
from metalearn.hyperparameters.method import Hyperparameters
from metalearn.rng import generator

STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # fourth order
LAYERS = {"layers.1.weight": 0, "layers.1.bias": 0, "layers.3.weight": 1, "layers.3.bias": 1}
TORCHS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-8),
}


def _rate(options, meta, step, name):
    """What the options say, in words of their own."""
    if options.learning_rates == "fixed":
        return options.learning_rate
    row = step if "step" in options.learning_rates else 0
    column = LAYERS[name] if "layer" in options.learning_rates else 0
    return float(meta["log_rate"][row, column].exp())


def _penalty(options, meta, name, leaf):
    key = {"global": "network", "per_layer": name.rpartition(".")[0], "per_weight": name}
    if options.penalties == "none":
        return torch.zeros(())
    return (meta[f"log_penalty/{key[options.penalties]}"].exp() * leaf**2 / 2).sum()


def _by_torch(options, situation, meta, network):
    """The sum of outer losses of the run, trained by torch.optim with a parameter group for each tensor."""
    segment = situation.segment
    for name, leaf in network.named_parameters():
        leaf.data = situation.inner.params[name].clone()
    groups = [{"params": [leaf], "name": name} for name, leaf in network.named_parameters()]
    optimizer, total = TORCHS[options.optimizer](groups), 0.0
    for step in range(len(segment.inner) + 1):
        if step in segment.outer:
            batch = segment.outer[step]
            total += torch.nn.functional.cross_entropy(network(batch.x).logits, batch.y).item()
        if step == len(segment.inner):
            return total
        batch = segment.inner[step]
        loss = torch.nn.functional.cross_entropy(network(batch.x).logits, batch.y)
        loss = loss + sum(_penalty(options, meta, *pair) for pair in network.named_parameters())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = _rate(options, meta, step, group["name"])
        optimizer.step()
    raise AssertionError


def _central_differences(function, meta, step=1e-3):
    grad = {key: torch.zeros_like(leaf) for key, leaf in meta.items()}
    for key, leaf in meta.items():
        for index in range(leaf.numel()):
            for side, weight in STENCIL.items():
                moved = {name: value.detach().clone() for name, value in meta.items()}
                moved[key].view(-1)[index] += side * step
                grad[key].view(-1)[index] += weight * function(moved) / step
    return grad


def _jittered(meta):
    """No two hyper-parameters alike, so that none can be taken for another."""
    return {
        key: leaf.detach() + 0.3 * torch.randn(leaf.shape, generator=generator("jitter", key))
        for key, leaf in meta.items()
    }


GRID = [
    ("global", "none", "sgd", 0),
    ("per_layer", "global", "sgd", 0),
    ("per_step", "per_layer", "sgd", 3),
    ("per_layer_and_step", "per_weight", "sgd", 0),
    ("fixed", "per_weight", "adam", 0),
    ("per_layer_and_step", "per_layer", "adam", 2),
]


@pytest.mark.parametrize(("rates", "penalties", "optimizer", "every"), GRID)
@pytest.mark.usefixtures("float64")
def test_agrees_with_central_differences(kit, rates, penalties, optimizer, every):
    options = kit.learned(
        learning_rates=rates, penalties=penalties, optimizer=optimizer, outer_every=every, penalty=0.1
    )
    context = kit.context()
    method, network = Hyperparameters(options, context), context.network()
    situation = method.situations(1)[1]
    meta = _jittered(method.meta)

    estimate = method.estimator.estimate(
        situation.problem, meta, situation.inner, situation.segment, generator("noise")
    )

    expected = _central_differences(lambda moved: _by_torch(options, situation, moved, network), meta)
    assert float(estimate.loss) == pytest.approx(_by_torch(options, situation, meta, network), rel=1e-12)
    assert all(leaf.abs().min() > 1e-9 for leaf in expected.values())
    torch.testing.assert_close(estimate.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_step_descends_the_mean_over_runs(kit):
    method = Hyperparameters(kit.learned(learning_rates="per_step", outer_every=2), kit.context())
    situations = method.situations(3)
    estimates = [
        method.estimator.estimate(*situation[:3], situation.segment, generator("noise"))
        for situation in situations
    ]
    method.step(3)
    mean = torch.stack([estimate.grad["log_rate"] for estimate in estimates]).mean(0)
    assert len(estimates) == 2
    torch.testing.assert_close(method.meta["log_rate"].grad, mean)


EXACT = {
    "truncated": Truncated(TruncatedOptions("truncated", 4)),
    "recompute": Unrolled(UnrolledOptions("unrolled", True)),
    "forward": Forward(ForwardOptions("forward", 3)),
}


@pytest.mark.parametrize("estimator", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.usefixtures("float64")
def test_other_exact_estimators_agree(kit, estimator, optimizer):
    options = kit.learned(
        learning_rates="per_layer_and_step", penalties="per_layer", outer_every=3, optimizer=optimizer
    )
    exact, other = (
        Hyperparameters(options, kit.context()),
        Hyperparameters(options, kit.context(None, estimator)),
    )
    exact.step(0)
    other.step(0)
    for key, leaf in exact.meta.items():
        torch.testing.assert_close(other.meta[key].grad, leaf.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_evolution_points_the_same_way(kit):
    options = kit.learned(learning_rates="per_layer")
    many = Evolution(EvolutionOptions("evolution", 24, 0.01))
    exact, drawn = Hyperparameters(options, kit.context()), Hyperparameters(options, kit.context(None, many))
    exact.step(0)
    drawn.step(0)
    cosine = torch.cosine_similarity(drawn.meta["log_rate"].grad, exact.meta["log_rate"].grad, dim=1)
    assert cosine.item() > 0.9


class OneBatch:
    """The task with one and the same training batch, so that an inner run converges."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def batch(self, split, index):
        return self.task.batch(split, 0 if split == "search_train" else index)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_implicit_penalties_agree_with_a_long_unroll(kit):
    """Where the run has converged, its end's dependence on the penalties is what the theorem says."""
    options = kit.learned(
        learning_rates="fixed", penalties="per_layer", penalty=0.05, learning_rate=0.1, horizon=500, runs=1
    )
    task = OneBatch(kit.Blobs())
    solvers = (
        ConjugateGradient(ConjugateGradientOptions("conjugate_gradient", 60, 0.0)),
        Neumann(NeumannOptions("neumann", 1000, 0.5, 0.0)),
    )
    exact = Hyperparameters(options, kit.context(task))
    exact.step(0)
    for solver in solvers:
        implicit = Hyperparameters(options, kit.context(task, solver))
        implicit.step(0)
        for key, leaf in exact.meta.items():
            torch.testing.assert_close(implicit.meta[key].grad, leaf.grad, rtol=1e-3, atol=1e-6)
