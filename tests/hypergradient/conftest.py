# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Independent answers that hypergradients are held to, and small networks to take them through."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

import metalearn.hypergradient  # noqa: F401  (registers the names)
from metalearn import registry
from metalearn.hypergradient.base import HyperGradient, Segment
from metalearn.hypergradient.guard import check_module
from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.lstm import LSTM
from metalearn.inner_optimizers import adam, adam_slots, rmsprop, rmsprop_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem, inner_step
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import Tree, detach, norm

STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # fourth order


def _central_differences(function: Callable[[Tree], Tensor], meta: Tree, step: float = 1e-3) -> Tree:
    """d function / d meta, one coordinate at a time, without any autograd on `meta`."""
    grad = {key: torch.zeros_like(leaf) for key, leaf in meta.items()}
    for key, leaf in meta.items():
        for index in range(leaf.numel()):
            for side, weight in STENCIL.items():
                moved = {name: value.detach().clone() for name, value in meta.items()}
                moved[key].view(-1)[index] += side * step
                grad[key].view(-1)[index] += weight * function(moved).detach() / step
    return grad


def _play(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> Tensor:
    """The sum of outer losses of an inner run, by plain steps: values only."""
    total = torch.zeros((), dtype=torch.float64)
    for step in range(len(segment.inner) + 1):
        if step in segment.outer:
            total = total + problem.outer_loss(meta, inner.params, segment.outer[step]).detach()
        if step < len(segment.inner):
            inner = inner_step(problem, meta, inner, segment.inner[step]).detach()
    return total


def _relative_error(found: Tree, expected: Tree) -> float:
    """||found - expected|| / ||expected||, over all leaves."""
    difference = {key: found[key] - expected[key] for key in expected}
    return float(norm(detach(difference)) / norm(detach(expected)))


SETTING = {  # what the one number of `estimator` means
    "finite_difference": "radius",
    "truncated": "window",
    "forward": "chunk",
    "neumann": "iterations",
    "conjugate_gradient": "iterations",
    "evolution": "pairs",
    "pes": "pairs",
}
OTHERS = {
    "unrolled": {"recompute": False},
    "neumann": {"step": 0.1, "damping": 0.0},
    "conjugate_gradient": {"damping": 0.0},
    "evolution": {"deviation": 0.01},
    "pes": {"deviation": 0.01},
}


def _estimator(name: str, setting: float = 0, **others: float) -> HyperGradient:
    """An estimator by name, with its radius, window, chunk, iterations or pairs; other options by name."""
    options = {"name": name, **OTHERS.get(name, {}), **others}
    if name in SETTING:
        options[SETTING[name]] = setting if name == "finite_difference" else int(setting)
    return registry.build("hypergradient", registry.entry("hypergradient", name).options(**options))


DOUBLE = {"dtype": torch.float64}
UPDATES = {
    "sgd": (sgd, sgd_slots, {"momentum": 0.0, "weight_decay": 0.0}),
    "momentum": (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 1e-2}),
    "nesterov": (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "adam": (adam, adam_slots, {"betas": (0.9, 0.99), "epsilon": 1e-8, "weight_decay": 1e-2}),
    "rmsprop": (rmsprop, rmsprop_slots, {"alpha": 0.9, "epsilon": 1e-8, "weight_decay": 1e-2}),
}


class Mlp(nn.Sequential):
    shape = (3,)

    def __init__(self):
        super().__init__(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


class Dropping(nn.Sequential):
    shape = (3,)

    def __init__(self):
        super().__init__(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 2))


class ConvNormed(nn.Module):
    """Convolution, BatchNorm by the batch's statistics, smooth activation, pooling, linear."""

    shape = (1, 5, 5)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


class Recurrent(nn.Module):
    """A gated cell written out in elementary operations; x [batch time feature]."""

    shape = (4, 2)

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(2 + 3, 6)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        hidden = x.new_zeros(x.shape[0], 3)
        for symbol in x.unbind(1):
            candidate, gate = self.inside(torch.cat([symbol, hidden], 1)).chunk(2, 1)
            hidden = hidden + torch.sigmoid(gate) * (torch.tanh(candidate) - hidden)
        return self.head(hidden)


class Last(nn.Module):
    """A linear map of a recurrent stack's last output; x [batch time feature]."""

    shape = (4, 2)

    def __init__(self, stack, units=3):
        super().__init__()
        self.stack, self.head = stack, nn.Linear(units, 2)

    def forward(self, x):
        return self.head(self.stack(x)[0][:, -1])


def lstm_cell(layer_norm=False):
    """Our LSTM."""
    return Last(LSTM(2, 3, CellOptions(layer_norm, 1.0, 1.0, "paper"), batch_first=True))


def hyperlstm_cell():
    """Our HyperLSTM with recurrent dropout."""
    cell, small = CellOptions(False, 1.0, 0.8, "code"), HyperOptions(2, 1, False, 1.0, "current")
    return Last(HyperLSTM(2, 2, cell, small, batch_first=True), 2)


KINDS = {
    "mlp": Mlp,
    "dropout": Dropping,
    "conv": ConvNormed,
    "recurrent": Recurrent,
    "torch_lstm": lambda: Last(nn.LSTM(2, 3, batch_first=True)),
    "lstm_cell": lstm_cell,
    "normed_lstm_cell": lambda: lstm_cell(layer_norm=True),
    "hyperlstm_cell": hyperlstm_cell,
}


class Regression(Problem):
    """A network's regression; meta: log penalties of the tensors in turn, the targets' shift, a log rate.

    Penalised is the distance from 0, or with `proximal` from the first weights, as in iMAML: strong enough it
    makes the inner problem convex without driving the weights to 0.
    """

    def __init__(self, kind, update, dtype=torch.float64, proximal=False):
        with seeded("network"):
            self.module = check_module(KINDS[kind]().to(dtype))
        self.dtype = dtype
        self.anchor = {key: proximal * leaf.detach() for key, leaf in self.module.named_parameters()}
        self.step, self.slots, self.settings = UPDATES[update]

    def init(self, meta, rng):
        params = {key: leaf.detach().clone() for key, leaf in self.module.named_parameters()}
        return Inner(params, self.slots(params))

    def run(self, params, batch):
        with seeded(*batch.key):
            return functional_call(self.module, params, (batch.x,))

    def penalty(self, meta, params):
        weights = itertools.cycle(meta["penalty"].exp().unbind())
        return sum(next(weights) * ((leaf - self.anchor[key]) ** 2).sum() for key, leaf in params.items())

    def inner_loss(self, meta, params, batch):
        output = self.run(params, batch)
        return mse_loss(output, batch.y + meta["shift"]) + self.penalty(meta, params)

    def update(self, meta, inner, grads):
        return self.step(inner.params, inner.slots, grads, meta["rate"].exp(), **self.settings)

    def outer_loss(self, meta, params, batch):
        return mse_loss(self.run(params, batch), batch.y) + 0.1 * (meta["shift"] ** 2).sum()

    def meta(self, penalties=None):
        """As many penalties as parameter tensors, or fewer, which are shared out in turn."""
        tensors = penalties or len(list(self.module.parameters()))
        rng = generator("meta")
        return {
            "penalty": torch.randn(tensors, generator=rng, **DOUBLE).to(self.dtype) - 3,
            "shift": torch.randn(2, generator=rng, **DOUBLE).to(self.dtype),
            "rate": torch.tensor(-2.5, dtype=self.dtype),
        }

    def batch(self, *key):
        rng = generator(*key)
        x = torch.randn(6, *self.module.shape, generator=rng, **DOUBLE).to(self.dtype)
        return Batch(x, torch.randn(6, 2, generator=rng, **DOUBLE).to(self.dtype), key)

    def segment(self, steps, *scored):
        inner = [self.batch("in", step) for step in range(steps)]
        return Segment(inner, {step: self.batch("out", step) for step in scored})

    def warm(self):
        """Two steps into a run: the slots are not zero any more."""
        meta = self.meta()
        inner = self.init(meta, generator())
        for step in range(2):
            inner = inner_step(self, meta, inner, self.batch("warm", step)).detach()
        return inner


@pytest.fixture(scope="session")
def central_differences():
    return _central_differences


@pytest.fixture(scope="session")
def play():
    return _play


@pytest.fixture(scope="session")
def relative_error():
    return _relative_error


@pytest.fixture(scope="session")
def estimator():
    return _estimator


@pytest.fixture(scope="session")
def regression():
    return Regression
