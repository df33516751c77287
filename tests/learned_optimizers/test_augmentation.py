"""Random units of variables and losses: the chain rule, keys, what is left as it is, resume."""

import math

import pytest
import torch

from metalearn.learned_optimizers.augmentation import loss_scale, rescaled
from metalearn.learned_optimizers.config import AugmentationOptions
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.learned_optimizers.run import Run
from metalearn.problem import Inner

TASKS = ["Quadratics", "Blobs"]
UNITS = [("coordinate", "coordinates"), ("tensor", "tensors"), ("problem", "one")]


def _pair(kit, task, by="coordinate", numbers=(2, 5)):
    """An optimizee as it is, and in other units."""
    plain = kit.optimizee(kit.learned(), kit.context(getattr(kit, task)()))
    return plain, rescaled(plain, AugmentationOptions(2.0, by, 0.0), "train", numbers)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("by", ["coordinate", "tensor", "problem"])
def test_chain_rule(kit, float64, task, by):  # noqa: ARG001
    """f(c theta') at theta' = theta / c is f(theta), its gradient c times that of f, however it is asked."""
    plain, scaled = _pair(kit, task, by)
    c, theta = scaled.units, plain.start("train", (2, 5))
    torch.testing.assert_close(scaled.start("train", (2, 5)) * c, theta)
    batch = plain.batches("train", (2, 5), 1, 1)[0]
    losses, grads = plain.losses_and_gradients(theta, batch)
    found = scaled.losses_and_gradients(theta / c, batch)
    torch.testing.assert_close(found, (losses, c * grads))
    torch.testing.assert_close(scaled.losses(theta / c, batch), losses)
    torch.testing.assert_close(scaled.total(theta / c, batch), plain.total(theta, batch))
    total, grad = scaled.total_and_gradient(theta / c, batch)
    torch.testing.assert_close((total, grad), (plain.total(theta, batch), c * grads))
    both = torch.stack([theta, theta + 1])
    several = plain.of_particles(both, batch)
    torch.testing.assert_close(scaled.of_particles(both / c, batch), (several[0], c * several[1]))


@pytest.mark.parametrize("task", TASKS)
def test_second_derivatives_go_by_the_square(kit, float64, task):  # noqa: ARG001
    plain, scaled = _pair(kit, task, numbers=(3,))
    batch = plain.batches("train", (3,), 0, 1)[0]

    def hessian(optimizee):
        theta = optimizee.start("train", (3,))[:1]
        one = batch._replace(x=batch.x[:1], y=batch.y[:1])
        optimizee.units = None if optimizee.units is None else optimizee.units[:1]
        return torch.autograd.functional.hessian(lambda row: optimizee.losses(row, one).sum(), theta)[0, :, 0]

    c = scaled.units[0]
    torch.testing.assert_close(hessian(scaled), c.outer(c) * hessian(plain))


@pytest.mark.parametrize(("by", "count"), UNITS)
def test_units_are_log_uniform_and_shared_as_asked(kit, by, count):
    plain, scaled = _pair(kit, "Blobs", by)
    counts = {"coordinates": plain.layout.coordinates, "tensors": len(plain.layout.sizes), "one": 1}
    for row in scaled.units:
        assert len(row.unique()) == counts[count]
    many = rescaled(plain, AugmentationOptions(2.0, "coordinate", 0.0), "train", range(50)).units.log()
    assert many.abs().max() <= 2.0
    assert many.mean().abs() < 0.1
    assert many.std().item() == pytest.approx(2 / math.sqrt(3), rel=0.05)


def test_units_are_named_by_number_and_split(kit):
    options = AugmentationOptions(1.0, "coordinate", 1.0)
    plain = kit.optimizee(kit.learned(), kit.context(kit.Quadratics()))
    both = rescaled(plain, options, "train", (4, 9)).units
    assert torch.equal(both[4:], rescaled(plain, options, "train", (9,)).units)
    assert len(both[:, 0].unique()) == 8  # every function of a batch has its own
    assert not torch.equal(both, rescaled(plain, options, "valid", (4, 9)).units)
    losses = loss_scale(plain, options, "train", (4, 9))
    assert (losses.shape, len(losses.unique())) == ((8, 1), 8)
    assert losses.log().abs().max() <= 1


def test_the_rule_sees_the_scaled_loss_and_is_judged_on_the_loss(kit, float64):  # noqa: ARG001
    """A step of gradient descent is longer by the factor; what counts stays the same."""

    class Descent:
        def update(self, meta, inner, grads, layout):  # noqa: ARG002
            return Inner({"theta": inner.params["theta"] - grads["theta"]}, {})

    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Quadratics()))
    factors = loss_scale(optimizee, AugmentationOptions(0.0, "coordinate", 2.0), "train", (0,))
    theta = {"theta": optimizee.start("train", (0,))}
    (batch,) = optimizee.batches("train", (0,), 0, 1)
    moved, losses = [], []
    for scale in (None, factors):
        run = Run(Descent(), optimizee, "train", (0,), second_derivatives=False, loss_scale=scale)
        total, grads = run.value_and_gradient(theta, batch)
        moved.append(run.update({}, Inner(theta, {}), grads).params["theta"] - theta["theta"])
        losses.append((total, run.outer_loss({}, theta, batch)))
    torch.testing.assert_close(moved[1], factors * moved[0])
    assert losses[0] == losses[1]


AUGMENTED = AugmentationOptions(1.0, "coordinate", 1.0)
SETTINGS = {"unroll": 2, "problems": 2, "augmentation": AUGMENTED}


def _method(kit, task, **changes):
    return MetaTraining(kit.learned(**{**SETTINGS, **changes}), kit.context(getattr(kit, task)()))


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_is_untouched_and_training_is_not(kit, task):
    plain = _method(kit, task, augmentation=AugmentationOptions(0.0, "coordinate", 0.0))
    scaled = _method(kit, task)
    assert plain.evaluate("valid") == scaled.evaluate("valid")
    assert plain.step(0) != scaled.step(0)
    theta = [method.carries[0].params["theta"] for method in (plain, scaled)]
    assert not torch.equal(*theta)


@pytest.mark.parametrize("task", TASKS)
def test_resume_inside_a_run_is_bit_exact(kit, task):
    whole, first, second = (_method(kit, task) for _ in range(3))
    losses = [whole.step(index)["train/meta_loss"] for index in range(5)]
    first.step(0), first.step(1)
    second.load_state_dict(first.state_dict())
    assert [second.step(index)["train/meta_loss"] for index in range(2, 5)] == losses[2:]
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())


@pytest.mark.parametrize("task", TASKS)
def test_meta_gradients_by_kernel_and_without(kit, task):
    """The kernel's way back sees the scaled gradients too."""
    grads = []
    for fused in (True, False):
        context = kit.context(getattr(kit, task)())
        context.machine.options.fused = fused
        method = MetaTraining(kit.learned(**SETTINGS), context)
        method.step(0)
        grads.append({key: leaf.grad for key, leaf in method.meta.items()})
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)
