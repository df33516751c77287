# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Forward mode gives what reverse mode gives, for every network, update and placing of outer batches."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from metalearn.hypergradient import forward
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import ForwardOptions, UnrolledOptions
from metalearn.hypergradient.forward import Forward
from metalearn.hypergradient.unroll import Unrolled
from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem, inner_step
from metalearn.rng import generator, seeded
from metalearn.task import Batch
from metalearn.tree import Tree

DOUBLE = {"dtype": torch.float64}
UPDATES = {
    "sgd": (sgd, sgd_slots, {"momentum": 0.0, "weight_decay": 0.0}),
    "momentum": (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 1e-2}),
    "adam": (adam, adam_slots, {"betas": (0.9, 0.99), "epsilon": 1e-8, "weight_decay": 1e-2}),
}


class Gated(nn.Module):
    """A gated cell written out; x [batch time feature]."""

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
    """A torch recurrent layer's last output."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def convolutional(norm):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), norm, nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4, 2)
    )


NETWORKS = {  # how it is made, the shape of an example
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), (3,)),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 2)),
        (3,),
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)), (3,)),
    "batch norm": (lambda: convolutional(nn.BatchNorm2d(4, track_running_stats=False)), (1, 5, 5)),
    "batch norm, running": (lambda: convolutional(nn.BatchNorm2d(4)), (1, 5, 5)),
    "group norm": (lambda: convolutional(nn.GroupNorm(2, 4)), (1, 5, 5)),
    "gated": (Gated, (4, 2)),
    "lstm": (lambda: Last(nn.LSTM(2, 3, batch_first=True)), (4, 2)),
}
IN_TURN = {"group norm"}  # where torch cannot batch


class Regression(Problem):
    """A network's regression; meta: a log penalty for each tensor, targets' shift, log rate, an idle leaf."""

    def __init__(self, network="mlp", update="sgd", second=True, dtype=torch.float64):
        make, self.shape = NETWORKS[network]
        with seeded("network"):
            self.module = make().to(dtype)
        self.second_derivatives, self.dtype = second, dtype
        self.step, self.slots, self.settings = UPDATES[update]

    def init(self, meta, rng):
        params = {key: leaf.detach().clone() for key, leaf in self.module.named_parameters()}
        return Inner(params, self.slots(params) | {"count": torch.tensor(0)})

    def run(self, params, batch):
        with seeded(*batch.key):
            return functional_call(self.module, params, (batch.x,))

    def inner_loss(self, meta, params, batch):
        penalty = [
            w * (leaf**2).sum() for w, leaf in zip(meta["penalty"].exp(), params.values(), strict=True)
        ]
        return mse_loss(self.run(params, batch), batch.y + meta["shift"]) + torch.stack(penalty).sum()

    def update(self, meta, inner, grads):
        slots = {key: leaf for key, leaf in inner.slots.items() if key != "count"}
        after = self.step(inner.params, slots, grads, meta["rate"].exp(), **self.settings)
        return Inner(after.params, after.slots | {"count": inner.slots["count"] + 1})

    def outer_loss(self, meta, params, batch):
        return mse_loss(self.run(params, batch), batch.y) + 0.1 * (meta["shift"] ** 2).sum()

    def meta(self):
        tensors = len(list(self.module.parameters()))
        rng = generator("meta")
        tree = {
            "penalty": torch.randn(tensors, generator=rng, **DOUBLE) - 3,
            "shift": torch.randn(2, generator=rng, **DOUBLE),
            "rate": torch.tensor(-2.5, **DOUBLE),
            "idle": torch.ones(1, 2, **DOUBLE),
        }
        return {key: leaf.to(self.dtype) for key, leaf in tree.items()}

    def batch(self, *key):
        rng = generator(*key)
        x = torch.randn(6, *self.shape, generator=rng, **DOUBLE).to(self.dtype)
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


def forward_mode(chunk=16):
    return Forward(ForwardOptions("forward", chunk))


def both(problem, segment, chunk=16):
    """By reverse and by forward mode."""
    ways = (Unrolled(UnrolledOptions("unrolled", False)), forward_mode(chunk))
    carry = problem.warm()
    return [way.estimate(problem, problem.meta(), carry, segment, generator()) for way in ways]


def agree(reverse, found, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(found.grad, reverse.grad, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.loss, reverse.loss)
    torch.testing.assert_close(found.carry, reverse.carry)


@pytest.mark.filterwarnings("ignore:forward")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_reverse_mode(network, update):
    problem = Regression(network, update)
    reverse, found = both(problem, problem.segment(4, 0, 2, 4))
    agree(reverse, found)
    assert all((reverse.grad[key] != 0).all() for key in ("penalty", "shift", "rate"))
    assert (found.grad["idle"] == 0).all()
    assert int(found.carry.slots["count"]) == 6
    assert not any(leaf.requires_grad for leaf in [*found.grad.values(), *found.carry.params.values()])


def test_agrees_with_central_differences(central_differences, play, relative_error):
    problem = Regression("mlp", "adam")
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(3, 1, 3)
    found = forward_mode().estimate(problem, meta, carry, segment, generator())
    expected = central_differences(lambda moved: play(problem, moved, carry, segment), meta)
    assert relative_error(found.grad, expected) < 1e-7


@pytest.mark.parametrize("scored", [(0,), (1,), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("second", [False, True])
def test_outer_batches_at_any_step(second, scored):
    problem = Regression("mlp", "momentum", second)
    agree(*both(problem, problem.segment(3, *scored)))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_chunk_changes_nothing(chunk):
    problem = Regression("mlp", "adam")
    agree(*both(problem, problem.segment(3, 3), chunk))


def test_second_derivatives_matter_here(relative_error):
    """What the agreements would miss if a term were left out."""
    exact, constant = (
        both(problem, problem.segment(3, 3))[1].grad
        for problem in (Regression(second=True), Regression(second=False))
    )
    assert relative_error({"p": constant["penalty"]}, {"p": exact["penalty"]}) > 0.5


def test_no_inner_step_at_all():
    problem = Regression()
    agree(*both(problem, problem.segment(0, 0)))


@pytest.mark.parametrize("update", ["sgd", "adam"])
def test_single_precision(update):
    """Adam's count of steps is in double precision among single ones."""
    problem = Regression("mlp", update, dtype=torch.float32)
    reverse, found = both(problem, problem.segment(3, 1, 3))
    agree(reverse, found, rtol=1e-4, atol=1e-6)
    assert all(leaf.dtype == torch.float32 for leaf in found.grad.values())


class Learned(Regression):
    """The update is a recurrent map with learned weights, with a memory for each coordinate."""

    def init(self, meta, rng):
        params = super().init(meta, rng).params
        return Inner(params, {f"h/{key}": leaf.new_zeros(*leaf.shape, 3) for key, leaf in params.items()})

    def inner_loss(self, meta, params, batch):
        return mse_loss(self.run(params, batch), batch.y)

    outer_loss = inner_loss

    def update(self, meta, inner, grads):
        params, slots = {}, {}
        for key, leaf in inner.params.items():
            rows = inner.slots[f"h/{key}"].reshape(-1, 3)
            seen = torch.addmm(meta["bias"], rows, meta["back"]) + grads[key].reshape(-1, 1) * meta["in"]
            hidden = torch.tanh(seen)
            slots[f"h/{key}"] = hidden.view(*leaf.shape, 3)
            params[key] = leaf + (hidden @ meta["out"]).view_as(leaf)
        return Inner(params, slots)

    def meta(self):
        rng = generator("phi")
        shapes = {"in": (3,), "back": (3, 3), "out": (3,), "bias": (3,)}
        return {key: 0.4 * torch.randn(shape, generator=rng, **DOUBLE) for key, shape in shapes.items()}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_a_learned_update(second, shared):
    problem = Learned(second=second)
    problem.shared_loss = shared
    batches = [problem.batch("in", step) for step in range(5)]
    agree(*both(problem, Segment(batches[:4], dict(enumerate(batches))), 8))


@pytest.mark.parametrize("network", NETWORKS)
def test_batches_only_where_torch_does_that_rightly(network):
    """Where torch has no rule, it warns and goes on in turn."""
    problem = Regression(network)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        both(problem, problem.segment(2, 2))
    said = [str(one.message) for one in caught if "forward: derivatives go one by one" in str(one.message)]
    if network in IN_TURN and not said:
        pytest.skip("this torch batches it rightly")
    assert bool(said) == (network in IN_TURN)


def test_a_wrong_rule_is_seen(monkeypatch):
    """One that gives finite numbers, too far from the right ones."""
    together = forward._together
    monkeypatch.setattr(forward, "_together", lambda *given: [leaf * (1 + 1e-8) for leaf in together(*given)])
    problem = Regression()
    with pytest.warns(UserWarning, match="one by one, which is slower: torch errs"):
        agree(*both(problem, problem.segment(3, 3)), rtol=1e-12)


def test_unit_directions_cover_all_leaves_once():
    meta: Tree = {"a": torch.zeros(2, 2), "b": torch.zeros(()), "c": torch.zeros(3, dtype=torch.float64)}
    rows = [
        torch.cat([leaf.reshape(len(leaf), -1) for leaf in forward._units(meta, start, 3).values()], 1)
        for start in (0, 3, 6)
    ]
    torch.testing.assert_close(torch.cat(rows), torch.eye(8, dtype=torch.float64))
    assert forward._units(meta, 6, 3)["c"].dtype == torch.float64


def _without_mixed_term(self, outputs, vectors, inputs):
    return RIGHT(self, outputs[:-2], vectors[:-2], inputs)  # those by penalty, shift


def _without_curvature(self, outputs, vectors, inputs):
    return RIGHT(self, outputs, [torch.zeros_like(v) for v in vectors[:-2]] + list(vectors[-2:]), inputs)


RIGHT = forward._Products.__call__


@pytest.mark.parametrize("fault", [_without_mixed_term, _without_curvature])
def test_agreement_sees_a_lost_term(fault, monkeypatch):
    problem = Regression("mlp", "momentum")
    monkeypatch.setattr(forward._Products, "__call__", fault)
    with pytest.raises(AssertionError, match="not close"):
        agree(*both(problem, problem.segment(3, 3)))
