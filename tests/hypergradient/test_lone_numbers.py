# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""A float32 parameter without dimensions: torch promotes it where it leaves other tensors alone."""

import pytest
import torch

from metalearn.hypergradient.base import Segment
from metalearn.inner_optimizers import adam, adam_slots, rmsprop, rmsprop_slots, sgd, sgd_slots
from metalearn.problem import Inner, Problem
from metalearn.rng import generator
from metalearn.task import Batch

UPDATES = {
    "sgd": (sgd, sgd_slots, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (adam, adam_slots, {"betas": (0.9, 0.99), "epsilon": 1e-3, "weight_decay": 0.0}),
    "rmsprop": (rmsprop, rmsprop_slots, {"alpha": 0.9, "epsilon": 1e-3, "weight_decay": 0.0}),
}


class Lone(Problem):
    """One number that is pulled to `target`, by `rate`."""

    def __init__(self, update, dtype):
        self.step, self.slots, self.settings = UPDATES[update]
        self.dtype = dtype
        self.meta = {"rate": torch.tensor(0.1, dtype=dtype), "target": torch.tensor(0.7, dtype=dtype)}

    def init(self, meta, rng=None):
        params = {"w": torch.tensor(2.0, dtype=self.dtype)}
        return Inner(params, self.slots(params))

    def inner_loss(self, meta, params, batch):
        return ((params["w"].sin() - meta["target"] * batch.x) ** 2).mean()

    def update(self, meta, inner, grads):
        return self.step(inner.params, inner.slots, grads, meta["rate"], **self.settings)

    def outer_loss(self, meta, params, batch):
        return (params["w"] - batch.x).square().mean()

    def segment(self):
        x = torch.tensor([0.3, -0.4, 0.8], dtype=self.dtype)
        return Segment([Batch(x, x, ("lone",))] * 4, {2: Batch(x, x, ("lone",)), 4: Batch(x, x, ("lone",))})


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", ["unrolled", "forward"])
def test_a_lone_number_keeps_its_type(update, name, estimator, central_differences, play, relative_error):
    single, double = Lone(update, torch.float32), Lone(update, torch.float64)

    found = estimator(name, 2).estimate(
        single, single.meta, single.init(single.meta), single.segment(), generator()
    )

    expected = central_differences(
        lambda meta: play(double, meta, double.init(meta), double.segment()), double.meta
    )
    assert found.carry.params["w"].dtype == torch.float32
    assert relative_error(found.grad, expected) < 1e-5


@pytest.mark.parametrize("update", ["adam", "rmsprop"])
def test_a_lone_number_moves_as_in_torch(update):
    step, fresh, settings = UPDATES[update]
    kind = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}[update]
    options = {"betas": settings["betas"]} if update == "adam" else {"alpha": settings["alpha"]}
    leaf = torch.tensor(2.0, requires_grad=True)
    optimizer = kind([leaf], lr=0.1, eps=settings["epsilon"], **options)
    params = {"w": leaf.detach().clone()}
    slots = fresh(params)
    for _ in range(5):
        params, slots = step(params, slots, {"w": params["w"].cos()}, 0.1, **settings)
        leaf.grad = leaf.detach().cos()
        optimizer.step()
    torch.testing.assert_close(params["w"], leaf.detach())
