"""Distributions of problems: counts of the paper, keys, independence of functions."""

import dataclasses

import pytest
import torch

from metalearn.networks import Mlp
from metalearn.options import MlpOptions
from metalearn.registry import UserError
from metalearn.tree import count

COUNTS = [([20], 15_910), ([40], 31_810), ([20, 20], 16_330)]  # papers/l2l.md, section 4.2


@pytest.mark.parametrize(("hidden", "expected"), COUNTS)
def test_counts_of_the_paper(kit, hidden, expected):
    assert count(_mlp(hidden, kit.spec("mnist", "classification", (1, 28, 28), 10)).parameters()) == expected


def test_coordinates_are_all_parameters(kit):
    context = kit.context(kit.Blobs())
    assert kit.optimizee(kit.learned(), context).layout.coordinates == count(context.network().parameters())


@pytest.mark.parametrize(
    "module", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(10)], ids=["dropout", "statistics"]
)
def test_a_network_that_is_no_pure_function_is_refused_at_once(kit, module):
    context = kit.context(kit.Blobs())

    def network():
        built = context.network()
        built.layers.append(module)
        return built

    with pytest.raises(UserError, match="cannot be optimized in batches of problems"):
        kit.optimizee(kit.learned(), context._replace(network=network))


def _mlp(hidden, spec):
    return Mlp(MlpOptions("mlp", hidden, "sigmoid", None), spec)


def test_every_function_has_a_point_of_its_own(kit, float64):  # noqa: ARG001
    """A coordinate's gradient is that of its own function: 2 W^T (W theta - y), whatever the batch."""
    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Quadratics(4, 3)))
    assert optimizee.layout.coordinates == 3
    theta = optimizee.start("train", (0,)).requires_grad_()
    batch = optimizee.batches("train", (0,), 0, 1)[0]
    (grad,) = torch.autograd.grad(optimizee.total(theta, batch), theta)
    for function in range(4):
        W, y, point = batch.x[function], batch.y[function], theta.detach()[function]
        torch.testing.assert_close(grad[function], 2 * W.T @ (W @ point - y))


def test_unflatten_names_every_parameter(kit):
    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Blobs()))
    theta = torch.arange(float(optimizee.layout.coordinates))
    params = optimizee.layout.unflatten(theta)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        name: leaf.shape for name, leaf in optimizee.network.named_parameters()
    }
    assert torch.equal(torch.cat([leaf.flatten() for leaf in params.values()]), theta)


def test_starts_are_keyed_and_gaussian(kit):
    optimizee = kit.optimizee(kit.learned(deviation=0.01), kit.context(kit.Quadratics(100, 10)))
    starts = {
        (split, problem): optimizee.start(split, (problem,))
        for split in ("train", "valid", "test")
        for problem in range(2)
    }
    assert len({start[0, 0].item() for start in starts.values()}) == 6
    assert torch.equal(starts["valid", 1], optimizee.start("valid", (1,)))
    assert torch.stack([*starts.values()]).std().item() == pytest.approx(0.01, rel=0.05)


def test_no_two_problems_share_a_minibatch(kit):
    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Blobs()))
    seen = [
        batch.key
        for split in ("train", "valid", "test")
        for problem in range(3)
        for batch in optimizee.batches(split, (problem,), 0, 7)
    ]
    assert len(set(seen)) == 3 * 3 * 7


def test_tasks_to_adapt_to_are_refused(kit):
    task = kit.Blobs()
    task.spec = dataclasses.replace(task.spec, kind="few_shot")
    with pytest.raises(UserError, match=r"task blobs: .* choose method=maml"):
        kit.optimizee(kit.learned(), kit.context(task))


def test_functions_stay_for_a_run_and_change_between_runs(kit):
    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Quadratics()))
    batches = optimizee.batches("train", (0,), 0, 7)
    assert all(batch is batches[0] for batch in batches)
    assert not torch.equal(batches[0].x, optimizee.batches("train", (1,), 0, 1)[0].x)


@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_problems_at_once_equal_the_loop(kit, float64, task):  # noqa: ARG001
    """vmap over problems against autograd, problem by problem."""
    optimizee = kit.optimizee(kit.learned(), kit.context(getattr(kit, task)()))
    theta = optimizee.start("test", range(3))
    pairs, again = list(optimizee.feed("test", 3)), list(optimizee.feed("test", 3))
    assert len(pairs) == 7
    assert torch.equal(pairs[6].x, again[6].x)
    assert torch.equal(pairs[6].y, again[6].y)
    losses, grads = optimizee.losses_and_gradients(theta, pairs[4])
    for problem in range(3):
        rows = slice(problem * optimizee.functions, (problem + 1) * optimizee.functions)
        leaf = theta[rows].clone().requires_grad_()
        loss = optimizee.total(leaf, optimizee.batches("test", (problem,), 4, 1)[0])
        torch.testing.assert_close(losses[rows].sum(), loss.detach())
        torch.testing.assert_close(grads[rows], torch.autograd.grad(loss, leaf)[0])
