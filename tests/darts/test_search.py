"""The bilevel problem against central differences, and the search step by step."""

import copy
import dataclasses
import json

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.config import MachineOptions
from metalearn.darts.architecture import entropy
from metalearn.darts.genotype import load
from metalearn.darts.problem import ArchitectureProblem
from metalearn.darts.search import Darts
from metalearn.darts.space import Mixture
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import FiniteDifferenceOptions, FirstOrderOptions, UnrolledOptions
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.unroll import Unrolled
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.problem import Inner, inner_step
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.tree import Tree, add, dot, norm, tree_map

FIRST = FirstOrder(FirstOrderOptions("first_order"))
EXACT = Unrolled(UnrolledOptions("unrolled", False))


def difference(radius: float) -> FiniteDifference:
    return FiniteDifference(FiniteDifferenceOptions("finite_difference", radius))


def softmax(alpha: Tree) -> Mixture:
    return Mixture(tree_map(lambda leaf: leaf.softmax(dim=-1), alpha))


@pytest.fixture(scope="session")
def options():
    return compose(["method=darts", "network=darts_supernet", "task=digits"]).method


@pytest.fixture
def search(images, tiny_supernet, machine, options):
    """Builds a search of a hundred steps on the tiny task."""

    def build(hypergradient=FIRST, **changes):
        context = Context(
            task=images(torch.float32),
            network=lambda: tiny_supernet(torch.float32),
            hypergradient=hypergradient,
            machine=machine,
            seed=0,
            steps=100,
        )
        return Darts(dataclasses.replace(options, **changes), context)

    return build


@pytest.fixture
def bilevel(images, tiny_supernet, machine, options):
    """A problem in float64 in the midst of a run, and its segment."""
    task, network = images(torch.float64), tiny_supernet(torch.float64)
    problem = ArchitectureProblem(task, network, machine, options, softmax, 0.1)
    meta = {
        kind: torch.randn(choice.shape, generator=generator(kind), dtype=torch.float64)
        for kind, choice in network.choices.items()
    }
    inner = problem.init(meta, generator("run"))
    noise = tree_map(
        lambda leaf: 0.02 * torch.randn(leaf.shape, generator=generator(leaf.numel()), dtype=torch.float64),
        inner.slots,
    )
    segment = Segment([task.batch("search_train", 0)], {1: task.batch("search_valid", 0)})
    return problem, meta, Inner(inner.params, noise), segment


def test_losses_are_full_precision_under_bf16(images, tiny_supernet, options):
    machine = Machine(MachineOptions("cpu", "cpu", "bf16", False, True, False, 0, 60))
    context = Context(images(torch.float32), lambda: tiny_supernet(torch.float32), FIRST, machine, 0, 100)
    search = Darts(options, context)
    metrics = search.step(0) | search.evaluate("valid")
    assert {value.dtype for name, value in metrics.items() if "loss" in name} == {torch.float32}


def central_difference(function, meta: Tree, direction: Tree, size: float = 1e-5) -> float:
    """The derivative of `function` along `direction`."""
    return (function(add(meta, direction, size)) - function(add(meta, direction, -size))) / (2 * size)


def directions(meta: Tree, number: int) -> list[Tree]:
    """Each kind of alpha alone in turn, so that neither hides the other."""
    kinds = list(meta)
    return [
        {
            kind: torch.randn(leaf.shape, generator=generator("direction", index), dtype=leaf.dtype)
            * (kind == kinds[index % 2])
            for kind, leaf in meta.items()
        }
        for index in range(number)
    ]


def assert_is_derivative(grad: Tree, function, meta: Tree, number: int) -> None:
    for direction in directions(meta, number):
        expected = central_difference(function, meta, direction)
        assert float(dot(grad, direction)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def relative_error(found: Tree, expected: Tree) -> float:
    return float(norm({key: found[key] - expected[key] for key in expected}) / norm(expected))


def after_one_step(bilevel, meta):
    problem, _, inner, segment = bilevel
    moved = inner_step(problem, meta, inner, segment.inner[0])
    return float(problem.outer_loss(meta, moved.params, segment.outer[1]))


def estimate(estimator, bilevel):
    problem, meta, inner, segment = bilevel
    return estimator.estimate(problem, meta, inner, segment, generator("noise"))


def test_unrolled_is_the_derivative_of_step_and_loss(bilevel):
    """Through momentum, weight decay, batch statistics and both alphas."""
    found = estimate(EXACT, bilevel)
    assert float(found.loss) == pytest.approx(after_one_step(bilevel, bilevel[1]), rel=1e-12)
    assert_is_derivative(found.grad, lambda meta: after_one_step(bilevel, meta), bilevel[1], 8)


def test_first_order_is_the_partial_derivative(bilevel):
    problem, meta, inner, segment = bilevel
    grad = estimate(FIRST, bilevel).grad
    assert_is_derivative(
        grad, lambda moved: float(problem.outer_loss(moved, inner.params, segment.outer[1])), meta, 8
    )


def test_finite_difference_agrees_with_unrolled_where_first_order_does_not(bilevel):
    exact = estimate(EXACT, bilevel).grad
    assert relative_error(estimate(difference(1e-5), bilevel).grad, exact) < 1e-4
    assert relative_error(estimate(FIRST, bilevel).grad, exact) > 0.2


def test_the_unrolled_step_has_momentum_and_weight_decay_if_asked(bilevel, options):
    problem, meta, inner, _ = bilevel
    grads = tree_map(torch.ones_like, inner.params)
    for momentum, decay in [(True, True), (False, True), (True, False), (False, False)]:
        chosen = dataclasses.replace(
            options, unroll_momentum=momentum, unroll_weight_decay=decay, weight_decay=0.01
        )
        problem = ArchitectureProblem(problem.task, problem.network, problem.machine, chosen, softmax, 0.1)
        moved = problem.update(meta, inner, grads).params
        for key, leaf in inner.params.items():
            step = 1 + 0.9 * momentum * inner.slots[f"momentum/{key}"] + 0.01 * decay * leaf
            torch.testing.assert_close(moved[key], leaf - 0.1 * step)


@pytest.mark.parametrize(
    "estimator", [FIRST, difference(0.01), EXACT], ids=["first", "difference", "unrolled"]
)
def test_estimators_leave_running_statistics_alone_and_the_weight_step_moves_them(search, estimator):
    run = search(estimator)
    problem, train = run._problem(0), run.task.batch("search_train", 0)
    before = copy.deepcopy(dict(run.network.named_buffers()))
    segment = Segment([train], {1: run.task.batch("search_valid", 0)})
    estimator.estimate(problem, run.alpha, run.inner, segment, generator("noise"))
    torch.testing.assert_close(dict(run.network.named_buffers()), before, rtol=0, atol=0)
    run.step(0)
    after = dict(run.network.named_buffers())
    assert all(not torch.equal(after[key], before[key]) for key in before)
    assert after["stem.1.num_batches_tracked"] == 1
    x = torch.nn.functional.conv2d(train.x, run.network.stem[0].weight, padding=1)
    torch.testing.assert_close(after["stem.1.running_mean"], 0.1 * x.mean((0, 2, 3)))


def test_alpha_moves_by_adam_and_the_weights_by_clipped_sgd_under_the_new_alpha(search):
    """One step against torch's own optimizers."""
    run = search(FIRST, clip=0.5, alpha_init="normal", alpha_learning_rate=0.1)
    reference = copy.deepcopy(run.network)
    alpha = {kind: leaf.detach().clone().requires_grad_() for kind, leaf in run.alpha.items()}
    adam = torch.optim.Adam(alpha.values(), lr=0.1, betas=(0.5, 0.999), weight_decay=1e-3)
    descent = torch.optim.SGD(reference.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
    for index in range(2):
        valid = run.task.batch("search_valid", 2 * index)
        run.task.loss(reference(valid.x, mixture=softmax(alpha)).logits, valid).backward()
        adam.step()
        reference.zero_grad()
        train = run.task.batch("search_train", index)
        loss = run.task.loss(reference(train.x, mixture=softmax(alpha)).logits, train)
        loss.backward()
        length = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        assert length > 0.5
        descent.param_groups[0]["lr"] = run._learning_rate(index)
        descent.step()
        adam.zero_grad()
        metrics = run.step(index)
        torch.testing.assert_close(metrics["train/loss"], loss.detach())
    torch.testing.assert_close(dict(run.alpha), alpha)
    torch.testing.assert_close(run.inner.params, dict(reference.named_parameters()), rtol=1e-4, atol=1e-5)


def test_joint_is_one_sgd_on_weights_and_alpha_from_one_batch(search):
    """One optimizer of torch's on both, the weights' gradient alone clipped."""
    run = search(FIRST, clip=0.5, alpha_init="normal", joint=True, weight_split="train", alpha_split="train")
    reference = copy.deepcopy(run.network)
    alpha = {kind: leaf.detach().clone().requires_grad_() for kind, leaf in run.alpha.items()}
    groups = [{"params": list(alpha.values())}, {"params": list(reference.parameters())}]
    descent = torch.optim.SGD(groups, lr=0.025, momentum=0.9, weight_decay=3e-4)
    for index in range(2):
        train = run.task.batch("train", index)
        run.task.loss(reference(train.x, mixture=softmax(alpha)).logits, train).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        for group in descent.param_groups:
            group["lr"] = run._learning_rate(index)
        descent.step()
        descent.zero_grad()
        run.step(index)
    torch.testing.assert_close(dict(run.alpha), alpha)
    torch.testing.assert_close(run.inner.params, dict(reference.named_parameters()), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"method.joint: got true.*set hypergradient=first_order"):
        search(difference(0.01), joint=True)


def test_alpha_is_no_weight(search):
    run = search()
    assert not any(leaf is other for leaf in run.alpha.values() for other in run.network.parameters())
    assert set(run.inner.params) == {key for key, _ in run.network.named_parameters()}


def test_alpha_starts_at_zeros_or_small_normals(search):
    assert all(not leaf.any() for leaf in search(alpha_init="zeros").alpha.values())
    drawn = torch.cat([leaf.detach().flatten() for leaf in search(alpha_init="normal").alpha.values()])
    assert 5e-4 < drawn.std() < 2e-3
    again = torch.cat([leaf.detach().flatten() for leaf in search(alpha_init="normal").alpha.values()])
    assert torch.equal(drawn, again)


@pytest.mark.parametrize(
    ("every", "index", "expected"),
    [
        ("step", 0, 0.025),
        ("step", 50, 0.013),
        ("step", 25, 0.0214853),
        ("epoch", 51, 0.013),
        ("epoch", 1, 0.025),
    ],
)
def test_learning_rate_is_a_cosine_to_the_floor(search, every, index, expected):
    """An epoch of the tiny task is two steps; 100 steps in all."""
    run = search(schedule_every=every, final_learning_rate=0.001)
    assert run._learning_rate(index) == pytest.approx(expected, rel=1e-4)


def test_valid_batches_are_the_first_of_fresh_shuffles_or_a_stream(search):
    assert search(valid_batches="fresh").streams.valid(3).key == ("search_valid", 6)
    assert search(valid_batches="stream").streams.valid(3).key == ("search_valid", 3)


@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(FIRST, id="first"),
        pytest.param(difference(0.01), id="difference", marks=pytest.mark.slow),
        pytest.param(EXACT, id="unrolled", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_exact(search, estimator):
    changes = {"alpha_init": "normal", "alpha_learning_rate": 0.1}
    straight, first, second = (search(estimator, **changes) for _ in range(3))
    rows = [straight.step(index) for index in range(6)]
    halves = [first.step(index) for index in range(3)]
    state = first.state_dict()
    first.step(3)  # a state is a copy: stepping on does not change it
    second.load_state_dict(state)
    halves += [second.step(index) for index in range(3, 6)]
    torch.testing.assert_close(halves, rows, rtol=0, atol=0)
    torch.testing.assert_close(second.state_dict(), straight.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(second.evaluate("valid"), straight.evaluate("valid"), rtol=0, atol=0)


def test_state_loads_with_weights_only(search, tmp_path):
    run = search()
    run.step(0)
    torch.save(run.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.testing.assert_close(loaded, run.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_evaluation_is_over_the_alpha_half_and_changes_nothing(search, statistics):
    run = search(evaluation_statistics=statistics)
    run.step(0)
    before = run.state_dict()
    found = run.evaluate("valid")
    torch.testing.assert_close(run.state_dict(), before, rtol=0, atol=0)
    network = copy.deepcopy(run.network).train(statistics == "batch")
    network.load_state_dict(run.inner.params, strict=False)
    batches = list(run.task.sweep("search_valid"))
    losses = [run.task.loss(network(batch.x, mixture=softmax(run.alpha)).logits, batch) for batch in batches]
    torch.testing.assert_close(found["valid/loss"], torch.stack(losses).mean().detach())
    assert {"valid/error", "genotype/skips_normal", "genotype/skips_reduce"} < set(found)
    assert run.network.training  # a situation looked at next is one of training


def test_evaluation_is_at_the_temperature_that_the_search_has_reached(search, options):
    """At 0.99 of 0 draws are all but hard; so too after a resume, before any step."""
    relaxation = dataclasses.replace(
        options.relaxation, kind="concrete", temperature=9.0, final_temperature=1e-3
    )
    run, resumed = (search(relaxation=relaxation) for _ in range(2))
    run.step(99)
    problem = run._problem(99)
    network = copy.deepcopy(run.network)
    network.load_state_dict(run.inner.params, strict=False)
    losses = []
    for batch in run.task.sweep("search_valid"):
        with seeded(*batch.key):
            logits = network(batch.x, mixture=problem.mix(run.alpha)).logits
        losses.append(run.task.loss(logits, batch))
    torch.testing.assert_close(run.evaluate("valid")["valid/loss"], torch.stack(losses).mean().detach())
    resumed.load_state_dict(run.state_dict())
    torch.testing.assert_close(resumed.evaluate("valid"), run.evaluate("valid"), rtol=0, atol=0)


def test_a_measured_curvature_that_draws_do_not_have_is_refused(search, options):
    relaxation = dataclasses.replace(options.relaxation, kind="dirichlet")
    monitor = dataclasses.replace(options.monitor, every=2)
    with pytest.raises(UserError, match="dirichlet, whose draws have no second derivative"):
        search(relaxation=relaxation, monitor=monitor)
    search(relaxation=relaxation, monitor=dataclasses.replace(monitor, eigenvalue="none")).step(1)


@pytest.mark.parametrize("estimator", [FIRST, difference(0.01)], ids=["first", "difference"])
def test_what_a_fused_search_would_differentiate_has_second_derivatives(search, estimator):
    """So that `diagnose` has an exact answer to hold its estimator against; the search stays fused."""
    run = search(estimator, alpha_init="normal")
    assert run.network.fused
    run.step(0)
    (situation,) = run.situations(1)
    found = EXACT.estimate(situation.problem, situation.meta, situation.inner, situation.segment, generator())
    assert run.network.fused
    run._begin(1)
    run.network.fused = False
    plain = EXACT.estimate(run._problem(1), run.alpha, run.inner, run.streams.segment(1), generator())
    torch.testing.assert_close(found.grad, plain.grad, rtol=0, atol=0)


def test_skips_are_counted_by_cell(search):
    run = search()
    with torch.no_grad():
        run.alpha["reduce"][:, 3] = 1.0
    found = run.evaluate("valid")
    assert found["genotype/skips_normal"] == 0
    assert found["genotype/skips_reduce"] == 4


def test_entropy():
    assert float(entropy(torch.full((5, 8), 1 / 8))) == pytest.approx(3 * 0.693147, rel=1e-5)
    sharp = torch.zeros(2, 8)
    sharp[0, 4] = 100.0
    assert float(entropy(sharp.softmax(dim=-1))) == pytest.approx(1.5 * 0.693147, rel=1e-5)


def test_artifacts(search, tmp_path):
    run = search(alpha_init="normal")
    run.artifacts(tmp_path)
    assert load(str(tmp_path / "genotype.json")) == run.network.discretise(softmax(run.alpha).weights)
    written = json.loads((tmp_path / "alpha.json").read_text())
    torch.testing.assert_close(torch.tensor(written["normal"]), run.alpha["normal"].detach())
    assert written["operations"]["normal"][3] == "skip_connect"
    for picture in ("genotype", "alpha"):
        assert (tmp_path / f"{picture}.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("kind", ["gumbel", "concrete", "dirichlet"])
def test_architectures_are_not_redrawn_between_two_passes(search, options, kind):
    relaxation = dataclasses.replace(options.relaxation, kind=kind)
    with pytest.raises(UserError, match=f"kind={kind}: .*; set method.noise=common"):
        search(noise="redrawn", relaxation=relaxation)
    search(noise="redrawn")
    search(relaxation=relaxation)


def test_what_cannot_be_searched_is_refused(search, images, machine, options):
    with pytest.raises(UserError, match="choose hypergradient=finite_difference"):
        search(None)
    with pytest.raises(UserError, match="never reads the test split"):
        search().evaluate("test")
    network = torch.nn.Linear(1, 1)
    context = Context(images(torch.float32), lambda: network, FIRST, machine, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="choose network=darts_supernet"):
        Darts(options, context)


def test_many_particles_are_refused(search):
    class Many(FirstOrder):
        def init(self, problem, meta, rng):
            return [super().init(problem, meta, rng)]

    with pytest.raises(UserError, match="keeps many inner runs"):
        search(Many(FirstOrderOptions("first_order")))


@pytest.mark.slow
def test_real_step_keeps_momentum_and_decay_though_the_unrolled_one_has_none(search):
    run = search(unroll_momentum=False, unroll_weight_decay=False, clip=None)
    plain = search(clip=None)
    for index in range(3):
        run.step(index)
        plain.step(index)
    torch.testing.assert_close(run.inner.params, plain.inner.params, rtol=0, atol=0)
