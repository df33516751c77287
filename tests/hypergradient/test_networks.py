# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Hypergradients through small networks and real optimizers; parity with higher and TorchOpt."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.guard import check_module
from metalearn.inner_optimizers import adam, adam_slots, rmsprop, rmsprop_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem, inner_step
from metalearn.rng import generator, seeded
from metalearn.task import Batch

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


class Lstm(nn.Module):
    shape = (4, 2)

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


NETWORKS = [Mlp, Dropping, ConvNormed, Recurrent]


class Regression(Problem):
    """A network's regression; meta: a log penalty for each parameter tensor, targets' shift, log rate."""

    def __init__(self, kind, update, dtype=torch.float64):
        with seeded("network"):
            self.module = check_module(kind().to(dtype))
        self.kind, self.dtype = kind, dtype
        self.step, self.slots, self.settings = UPDATES[update]
        self.calls = itertools.count()

    def init(self, meta, rng):
        params = {key: leaf.detach().clone() for key, leaf in self.module.named_parameters()}
        return Inner(params, self.slots(params))

    def run(self, params, batch):
        with seeded(*batch.key):
            return functional_call(self.module, params, (batch.x,))

    def penalty(self, meta, params):
        weights = meta["penalty"].exp().unbind()
        return sum(w * (leaf**2).sum() for w, leaf in zip(weights, params.values(), strict=True))

    def inner_loss(self, meta, params, batch):
        output = self.run(params, batch)
        return mse_loss(output, batch.y + meta["shift"]) + self.penalty(meta, params)

    def update(self, meta, inner, grads):
        return self.step(inner.params, inner.slots, grads, meta["rate"].exp(), **self.settings)

    def outer_loss(self, meta, params, batch):
        return mse_loss(self.run(params, batch), batch.y) + 0.1 * (meta["shift"] ** 2).sum()

    def meta(self):
        tensors = len(list(self.module.parameters()))
        rng = generator("meta")
        return {
            "penalty": torch.randn(tensors, generator=rng, **DOUBLE).to(self.dtype) - 3,
            "shift": torch.randn(2, generator=rng, **DOUBLE).to(self.dtype),
            "rate": torch.tensor(-2.5, dtype=self.dtype),
        }

    def batch(self, *key):
        rng = generator(*key)
        x = torch.randn(6, *self.kind.shape, generator=rng, **DOUBLE).to(self.dtype)
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


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_unrolled_agrees_with_central_differences(
    kind, update, estimator, central_differences, play, relative_error
):
    problem = Regression(kind, update)
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(3, 0, 3)
    found = estimator("unrolled").estimate(problem, meta, carry, segment, generator())
    expected = central_differences(lambda moved: play(problem, moved, carry, segment), meta)
    assert relative_error(found.grad, expected) < 1e-7


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_finite_difference_agrees_with_unrolled(kind, update, estimator, relative_error):
    """Its error falls with the square of the radius."""
    problem = Regression(kind, update)
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(1, 1)
    exact = estimator("unrolled").estimate(problem, meta, carry, segment, generator())
    errors = {}
    for radius in (3e-2, 3e-3, 3e-4):
        way = estimator("finite_difference", radius)
        found = way.estimate(problem, meta, carry, segment, generator())
        errors[radius] = relative_error(found.grad, exact.grad)
        torch.testing.assert_close(found.loss, exact.loss)
        torch.testing.assert_close(found.carry, exact.carry)
    assert errors[3e-4] < 1e-6
    assert errors[3e-3] == pytest.approx(errors[3e-2] / 100, rel=0.3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_second_order_term_matters_here(kind, estimator, relative_error):
    """What the agreement above would miss if the term were left out."""
    problem = Regression(kind, "sgd")
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(1, 1)
    exact = estimator("unrolled").estimate(problem, meta, carry, segment, generator()).grad
    problem.second_derivatives = False
    for name in ("finite_difference", "unrolled"):
        without = estimator(name, 1e-3).estimate(problem, meta, carry, segment, generator()).grad
        assert relative_error({"p": without["penalty"]}, {"p": exact["penalty"]}) > 0.5


@pytest.mark.parametrize("kind", NETWORKS)
def test_plain_sgd_gives_the_papers_quotient(kind, estimator):
    """Eq. 7-8 written down as printed, at the paper's eps = 0.01 / ||v||, equals ours to rounding."""
    problem = Regression(kind, "sgd")
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(1, 1)
    train, valid, w, xi = segment.inner[0], segment.outer[1], carry.params, meta["rate"].exp()

    def by(loss, tree):
        return dict(zip(tree, torch.autograd.grad(loss, list(tree.values()), allow_unused=True), strict=True))

    leaves = {key: leaf.clone().requires_grad_() for key, leaf in w.items()}
    g = by(problem.inner_loss(meta, leaves, train), leaves)
    after = {key: (leaf - xi * g[key]).requires_grad_() for key, leaf in w.items()}
    v = by(problem.outer_loss(meta, after, valid), after)
    eps = 0.01 / torch.cat([leaf.flatten() for leaf in v.values()]).norm()
    alpha = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    plus, minus = ({key: leaf + side * eps * v[key] for key, leaf in w.items()} for side in (1, -1))
    high, low = (by(problem.inner_loss(alpha, point, train), alpha) for point in (plus, minus))
    direct = by(problem.outer_loss(alpha, after, valid), alpha)["shift"]
    expected = {
        "penalty": -xi * (high["penalty"] - low["penalty"]) / (2 * eps),
        "shift": direct - xi * (high["shift"] - low["shift"]) / (2 * eps),
    }

    found = estimator("finite_difference", 0.01).estimate(problem, meta, carry, segment, generator()).grad
    torch.testing.assert_close({key: found[key] for key in expected}, expected, rtol=1e-9, atol=1e-12)


class Redrawing(Regression):
    """Draws new dropout masks at every pass."""

    def run(self, params, batch):
        with seeded("anew", next(self.calls)):
            return functional_call(self.module, params, (batch.x,))


def test_agreement_sees_redrawn_masks(estimator, relative_error):
    honest = Regression(Dropping, "momentum")
    meta, carry, segment = honest.meta(), honest.warm(), honest.segment(1, 1)
    exact = estimator("unrolled").estimate(honest, meta, carry, segment, generator()).grad
    way = estimator("finite_difference", 3e-4)
    wrong = way.estimate(Redrawing(Dropping, "momentum"), meta, carry, segment, generator()).grad
    assert relative_error(wrong, exact) > 1  # the agreement test allows 1e-6


@pytest.mark.parametrize("kind", [Mlp, ConvNormed, Recurrent])
@pytest.mark.parametrize("update", ["sgd", "momentum", "adam"])
def test_finite_difference_in_float32(kind, update, estimator, relative_error):
    """At the paper's radius, held to the exact answer in float64."""
    exact = Regression(kind, update)
    meta, carry, segment = exact.meta(), exact.warm(), exact.segment(1, 1)
    expected = estimator("unrolled").estimate(exact, meta, carry, segment, generator()).grad
    single = Regression(kind, update, torch.float32)
    carry32 = Inner(*({key: leaf.float() for key, leaf in tree.items()} for tree in carry))
    way = estimator("finite_difference", 0.01)
    found = way.estimate(single, single.meta(), carry32, single.segment(1, 1), generator()).grad
    assert all(leaf.dtype == torch.float32 for leaf in found.values())
    assert relative_error({key: leaf.double() for key, leaf in found.items()}, expected) < 1e-2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [Mlp, ConvNormed, Recurrent, Lstm])
def test_unrolled_equals_higher(kind, momentum, estimator):
    import higher

    problem = Regression(kind, "sgd")
    problem.settings = {"momentum": momentum, "weight_decay": 1e-2}
    meta, segment = problem.meta(), problem.segment(5, 0, 2, 5)
    ours = estimator("unrolled").estimate(
        problem, meta, problem.init(meta, generator()), segment, generator()
    )

    leaves = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    optimizer = torch.optim.SGD(problem.module.parameters(), lr=1.0, **problem.settings)
    total = 0.0
    with higher.innerloop_ctx(
        problem.module, optimizer, override={"lr": [leaves["rate"].exp()]}
    ) as (net, inner):  # fmt: skip
        for step in range(6):
            if step in segment.outer:
                outer = segment.outer[step]
                total = total + mse_loss(net(outer.x), outer.y) + 0.1 * (leaves["shift"] ** 2).sum()
            if step < 5:
                batch = segment.inner[step]
                penalty = problem.penalty(leaves, dict(net.named_parameters()))
                inner.step(mse_loss(net(batch.x), batch.y + leaves["shift"]) + penalty)
        grads = torch.autograd.grad(total, list(leaves.values()))
        final = {key: leaf.detach() for key, leaf in net.named_parameters()}
    torch.testing.assert_close(ours.grad, dict(zip(leaves, grads, strict=True)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.carry.params, final, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [Mlp, ConvNormed, Recurrent, Lstm])
def test_unrolled_adam_equals_torchopt(kind, estimator):
    torchopt = pytest.importorskip("torchopt")
    problem = Regression(kind, "adam")
    betas = (0.5, 0.75)  # their powers are exact in float32, in which TorchOpt takes them
    problem.settings = {"betas": betas, "epsilon": 1e-8, "weight_decay": 0.0}
    meta, segment = problem.meta(), problem.segment(5, 5)
    ours = estimator("unrolled").estimate(
        problem, meta, problem.init(meta, generator()), segment, generator()
    )

    leaves = {key: leaf.clone().requires_grad_() for key, leaf in meta.items()}
    optimizer = torchopt.MetaAdam(problem.module, betas=betas, lr=float(meta["rate"].exp()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in segment.inner:
            params = dict(_tensors(problem.module))
            penalty = problem.penalty(leaves, params)
            optimizer.step(mse_loss(problem.module(batch.x), batch.y + leaves["shift"]) + penalty)
    last = segment.outer[5]
    total = mse_loss(problem.module(last.x), last.y) + 0.1 * (leaves["shift"] ** 2).sum()
    wanted = {key: leaves[key] for key in ("penalty", "shift")}
    grads = dict(zip(wanted, torch.autograd.grad(total, list(wanted.values())), strict=True))
    torch.testing.assert_close({key: ours.grad[key] for key in wanted}, grads, rtol=1e-9, atol=1e-12)


def _tensors(module):
    """A module's parameters by name, also after TorchOpt has put graph tensors in their place."""
    for name, child in module.named_modules():
        for key, value in child._parameters.items():
            if value is not None:
                yield f"{name}.{key}" if name else key, value
