"""Mixing in a network and a search: shares of edges, one path, penalty and noise in hypergradients."""

import dataclasses

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.architecture import Architecture, edge_shares, edges
from metalearn.darts.problem import ArchitectureProblem
from metalearn.darts.search import Darts
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import FiniteDifferenceOptions, FirstOrderOptions, UnrolledOptions
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.unroll import Unrolled
from metalearn.method import Context
from metalearn.rng import generator, seeded
from metalearn.tree import add, dot, norm, tree_map

FIRST = FirstOrder(FirstOrderOptions("first_order"))


@pytest.fixture(scope="session")
def options():
    return compose(["method=darts", "network=darts_supernet", "task=digits"]).method


@pytest.fixture
def variant(options):
    """The options of a search with another relaxation."""

    def build(**changes):
        return dataclasses.replace(options, relaxation=dataclasses.replace(options.relaxation, **changes))

    return build


def test_edges_share_their_node():
    """Edges 0, 1 lead to node 2, edges 2, 3 to node 3; nothing is allowed on edge 3."""
    allowed = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    logits = torch.tensor([0.0, 2.0, 5.0, 9.0], dtype=torch.float64).requires_grad_()
    shares = edge_shares(logits, allowed, (2, 2, 3, 3))
    expected = torch.tensor([1 / (1 + torch.e**2), torch.e**2 / (1 + torch.e**2), 1, 0], dtype=torch.float64)
    torch.testing.assert_close(shares, expected)
    (grad,) = torch.autograd.grad(shares[0], logits)
    slopes = expected[0] * expected[1] * torch.tensor([1.0, -1.0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(grad, slopes)


def test_edge_normalisation_scales_mixture_and_strengths(tiny_supernet, variant):
    choices = tiny_supernet(torch.float64).choices
    plain = Architecture(choices, variant())
    whole = Architecture(choices, variant(edge_normalisation=True))
    alpha = {
        key: torch.randn(leaf.shape, generator=generator(key), dtype=torch.float64)
        for key, leaf in whole.start(generator("alpha")).items()
    }
    assert list(alpha) == ["normal", "reduce", "normal_edges", "reduce_edges"]
    masks = {kind: choice.allowed for kind, choice in choices.items()}
    before = plain.strengths({kind: alpha[kind] for kind in choices}, masks)
    for weights in (whole.mix(alpha, masks, 0.0).weights, whole.strengths(alpha, masks)):
        for kind in choices:
            first, second = alpha[edges(kind)][:2].softmax(0), alpha[edges(kind)][2:].softmax(0)
            torch.testing.assert_close(weights[kind], before[kind] * torch.cat([first, second])[:, None])


def test_start_of_alpha_is_the_same_with_and_without_edges(tiny_supernet, variant):
    choices = tiny_supernet(torch.float64).choices
    noisy_start = [
        Architecture(
            choices, dataclasses.replace(variant(edge_normalisation=extra), alpha_init="normal")
        ).start(generator("alpha"))
        for extra in (False, True)
    ]
    assert torch.equal(noisy_start[0]["reduce"], noisy_start[1]["reduce"])
    assert noisy_start[1]["normal_edges"].shape == (5,)
    assert noisy_start[1]["normal_edges"].any()


def test_one_path_runs_one_operation_an_edge(tiny_supernet, variant):
    """The output is that of all of them, weighted by zeros and a one."""
    network = tiny_supernet(torch.float64)
    architecture = Architecture(network.choices, variant(kind="gumbel"))
    masks = {kind: choice.allowed for kind, choice in network.choices.items()}
    alpha = {kind: torch.zeros(choice.shape, dtype=torch.float64) for kind, choice in network.choices.items()}
    calls: list[str] = []
    for name, module in network.named_modules():
        if name.rpartition(".")[0].endswith("operations"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    x = torch.randn(4, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    with seeded("choice", 1):
        mixture = architecture.mix(alpha, masks, 0.0)
    found = network(x, mixture=mixture).logits
    expected = []
    for index, kind in enumerate(["normal", "reduce", "reduce"]):
        chosen = mixture.weights[kind].argmax(1).tolist()
        names = [network.choices[kind].operations[place] for place in chosen]
        expected += [f"cells.{index}.edges.{edge}.operations.{name}" for edge, name in enumerate(names)]
    assert sorted(calls) == sorted(name for name in expected if not name.endswith("none"))
    calls.clear()
    torch.testing.assert_close(network(x, mixture=mixture._replace(running=None)).logits, found)
    assert len(calls) == 3 * 5 * 7


@pytest.mark.parametrize("partial", [1, 2])
def test_a_path_of_nothing_but_none_runs(tiny_supernet, variant, partial):
    network = tiny_supernet(torch.float64, partial=partial, channels=4)
    architecture = Architecture(network.choices, variant(kind="gumbel"))
    masks = {kind: choice.allowed for kind, choice in network.choices.items()}
    alpha = {kind: torch.zeros(choice.shape, dtype=torch.float64) for kind, choice in network.choices.items()}
    for leaf in alpha.values():
        leaf[:, 0] = 60.0
    x = torch.randn(4, 1, 8, 8, generator=generator("x"), dtype=torch.float64)
    logits = network(x, mixture=architecture.mix(alpha, masks, 0.0)).logits
    if partial == 1:
        torch.testing.assert_close(logits, network.classifier.bias.expand(4, -1))
    else:
        assert not torch.allclose(logits[0], logits[1])  # what goes by is still there


def bilevel(task, network, machine, options, penalised=True):
    """A problem in float64 whose weights are drawn by the options' relaxation."""
    architecture = Architecture(network.choices, options)
    masks = {kind: choice.allowed for kind, choice in network.choices.items()}
    problem = ArchitectureProblem(
        task,
        network,
        machine,
        options,
        lambda alpha: architecture.mix(alpha, masks, 0.5),
        0.1,
        penalty=(lambda alpha: architecture.penalty(alpha, masks)) if penalised else None,
    )
    meta = {
        key: torch.randn(leaf.shape, generator=generator(key), dtype=torch.float64)
        for key, leaf in architecture.start(generator("start")).items()
    }
    segment = Segment([task.batch("search_train", 0)], {1: task.batch("search_valid", 0)})
    return problem, meta, problem.init(meta, generator("run")), segment


@pytest.mark.parametrize("kind", ["sigmoid", pytest.param("dirichlet", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "estimator",
    [FIRST, FiniteDifference(FiniteDifferenceOptions("finite_difference", 1e-3))],
    ids=["first", "difference"],
)
def test_the_penalty_is_part_of_the_hypergradient(kind, estimator, images, tiny_supernet, machine, variant):
    """With and without it, an estimate differs by the penalty's gradient, and the loss by its value."""
    found = []
    for penalised in (True, False):
        parts = (
            images(torch.float64),
            tiny_supernet(torch.float64),
            machine,
            variant(kind=kind, penalty=3.0),
        )
        problem, meta, inner, segment = bilevel(*parts, penalised=penalised)
        found.append(estimator.estimate(problem, meta, inner, segment, generator("noise")))
    with_it, without = found
    problem, meta, _, _ = bilevel(*parts)  # type: ignore[reportPossiblyUnboundVariable]
    meta = tree_map(lambda leaf: leaf.requires_grad_(), meta)
    assert problem.penalty is not None
    value = problem.penalty(meta)
    assert value is not None
    expected = dict(zip(meta, torch.autograd.grad(value, list(meta.values())), strict=True))
    assert norm(expected) > 0.01
    torch.testing.assert_close(with_it.grad, add(without.grad, expected))
    torch.testing.assert_close(with_it.loss, without.loss + value.detach())


@pytest.mark.parametrize(
    "kind", ["concrete", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sigmoid", "dirichlet"))]
)
def test_finite_differences_see_one_draw(kind, images, tiny_supernet, machine, variant):
    """Both passes over a batch mix by the same noise, so a small radius gives the exact estimate."""
    parts = (images(torch.float64), tiny_supernet(torch.float64), machine, variant(kind=kind))
    problem, meta, inner, segment = bilevel(*parts)
    estimators = [
        Unrolled(UnrolledOptions("unrolled", False)),
        FiniteDifference(FiniteDifferenceOptions("finite_difference", 1e-6)),
    ]
    exact, close = (e.estimate(problem, meta, inner, segment, generator("noise")).grad for e in estimators)
    first = FIRST.estimate(problem, meta, inner, segment, generator("noise")).grad
    assert norm(add(close, exact, -1.0)) < 1e-5 * norm(exact)
    assert norm(add(first, exact, -1.0)) > 1e-3 * norm(exact)


@pytest.mark.slow
def test_first_order_has_the_slope_of_the_outer_loss_in_edges_too(images, tiny_supernet, machine, variant):
    parts = (images(torch.float64), tiny_supernet(torch.float64), machine)
    problem, meta, inner, segment = bilevel(*parts, variant(kind="concrete", edge_normalisation=True))
    grad = FIRST.estimate(problem, meta, inner, segment, generator("noise")).grad
    for key in meta:
        direction = {name: torch.zeros_like(leaf) for name, leaf in meta.items()}
        direction[key] = torch.randn(meta[key].shape, generator=generator("way"), dtype=torch.float64)
        sides = [
            problem.outer_loss(add(meta, direction, side), inner.params, segment.outer[1])
            for side in (1e-5, -1e-5)
        ]
        torch.testing.assert_close(dot(grad, direction), (sides[0] - sides[1]) / 2e-5, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kind": "gumbel", "edge_normalisation": True}, id="gumbel"),
        pytest.param({"kind": "dirichlet", "penalty": 0.001}, id="dirichlet", marks=pytest.mark.slow),
        pytest.param({"kind": "concrete"}, id="concrete", marks=pytest.mark.slow),
        pytest.param({"kind": "sigmoid", "penalty": 10.0}, id="sigmoid", marks=pytest.mark.slow),
    ],
)
def test_a_search_resumes_bit_by_bit(changes, images, tiny_supernet, machine, variant):
    changed = dataclasses.replace(variant(**changes), alpha_learning_rate=0.1)
    network = lambda: tiny_supernet(torch.float32)  # noqa: E731
    context = Context(images(torch.float32), network, FIRST, machine, 0, 100)
    straight, again = Darts(changed, context), Darts(changed, context)
    straight.step(0)
    again.load_state_dict(straight.state_dict())
    rows = [run.step(1) for run in (straight, again)]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=0)
    torch.testing.assert_close(again.state_dict(), straight.state_dict(), rtol=0, atol=0)
    assert all(value.isfinite().all() for value in (rows[0] | straight.evaluate("valid")).values())
    assert all(leaf.any() for leaf in straight.alpha.values())
