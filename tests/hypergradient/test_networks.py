"""Hypergradients through small networks and real optimizers; parity with higher and TorchOpt."""

import warnings

import pytest
import torch
from torch.nn.functional import mse_loss

from metalearn.problem import Inner
from metalearn.rng import generator

UPDATES = ["sgd", "momentum", "nesterov", "adam", "rmsprop"]
NETWORKS = ["mlp", "dropout", "conv", "recurrent"]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_unrolled_agrees_with_central_differences(
    kind, update, estimator, regression, central_differences, play, relative_error
):
    problem = regression(kind, update)
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(3, 0, 3)
    found = estimator("unrolled").estimate(problem, meta, carry, segment, generator())
    expected = central_differences(lambda moved: play(problem, moved, carry, segment), meta)
    assert relative_error(found.grad, expected) < 1e-7


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_finite_difference_agrees_with_unrolled(kind, update, regression, estimator, relative_error):
    """Its error falls with the square of the radius."""
    problem = regression(kind, update)
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
def test_second_order_term_matters_here(kind, regression, estimator, relative_error):
    """What the agreement above would miss if the term were left out."""
    problem = regression(kind, "sgd")
    meta, carry, segment = problem.meta(), problem.warm(), problem.segment(1, 1)
    exact = estimator("unrolled").estimate(problem, meta, carry, segment, generator()).grad
    problem.second_derivatives = False
    for name in ("finite_difference", "unrolled"):
        without = estimator(name, 1e-3).estimate(problem, meta, carry, segment, generator()).grad
        assert relative_error({"p": without["penalty"]}, {"p": exact["penalty"]}) > 0.5


@pytest.mark.parametrize("kind", NETWORKS)
def test_plain_sgd_gives_the_papers_quotient(kind, regression, estimator):
    """Eq. 7-8 written down as printed, at the paper's eps = 0.01 / ||v||, equals ours to rounding."""
    problem = regression(kind, "sgd")
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


@pytest.mark.parametrize("kind", ["mlp", "conv", "recurrent"])
@pytest.mark.parametrize("update", ["sgd", "momentum", "adam"])
def test_finite_difference_in_float32(kind, update, regression, estimator, relative_error):
    """At the paper's radius, held to the exact answer in float64."""
    exact = regression(kind, update)
    meta, carry, segment = exact.meta(), exact.warm(), exact.segment(1, 1)
    expected = estimator("unrolled").estimate(exact, meta, carry, segment, generator()).grad
    single = regression(kind, update, torch.float32)
    carry32 = Inner(*({key: leaf.float() for key, leaf in tree.items()} for tree in carry))
    way = estimator("finite_difference", 0.01)
    found = way.estimate(single, single.meta(), carry32, single.segment(1, 1), generator()).grad
    assert all(leaf.dtype == torch.float32 for leaf in found.values())
    assert relative_error({key: leaf.double() for key, leaf in found.items()}, expected) < 1e-2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["mlp", "conv", "recurrent", "torch_lstm"])
def test_unrolled_equals_higher(kind, momentum, regression, estimator):
    import higher

    problem = regression(kind, "sgd")
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


@pytest.mark.parametrize("kind", ["mlp", "conv", "recurrent", "torch_lstm"])
def test_unrolled_adam_equals_torchopt(kind, regression, estimator):
    torchopt = pytest.importorskip("torchopt")
    problem = regression(kind, "adam")
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
