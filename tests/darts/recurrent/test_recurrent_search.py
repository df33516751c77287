"""The search of recurrent cells: its hypergradient against central differences, and step by step."""

import copy
import dataclasses

import pytest
import torch

from metalearn.compose import compose
from metalearn.darts.clip import clip_backward, clip_step
from metalearn.darts.problem import ArchitectureProblem
from metalearn.darts.recurrent.genotype import load
from metalearn.darts.search import Darts
from metalearn.darts.space import Mixture
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import FiniteDifferenceOptions, FirstOrderOptions, UnrolledOptions
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.unroll import Unrolled
from metalearn.method import Context
from metalearn.problem import inner_step
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.tree import Tree, add, dot, norm, tree_map

FIRST = FirstOrder(FirstOrderOptions("first_order"))
EXACT = Unrolled(UnrolledOptions("unrolled", False))
SECOND = FiniteDifference(FiniteDifferenceOptions("finite_difference", 0.01))
NARROW = FiniteDifference(FiniteDifferenceOptions("finite_difference", 1e-5))


@pytest.fixture(scope="session")
def options():
    """The recipe's, with the rate of a network of six units and alpha moving fast."""
    method = compose(["recipe=darts/ptb_search"]).method
    return dataclasses.replace(method, learning_rate=0.5, alpha_learning_rate=0.1, weight_decay=1e-3)


@pytest.fixture
def bilevel(text, recurrent_supernet, machine, options):
    """Builds a problem in float64 in the midst of a text, dropout and all, with its alpha and segment."""

    def build(**changes):
        network = recurrent_supernet(torch.float64, output_dropout=0.3, input_dropout=0.3)
        train, valid = text.batch("train", 0), text.batch("valid", 0)
        hidden = {
            batch.key: {"hidden": torch.randn(5, 6, generator=generator(*batch.key), dtype=torch.float64)}
            for batch in (train, valid)
        }
        problem = ArchitectureProblem(
            text,
            network,
            machine,
            dataclasses.replace(options, **changes),
            lambda alpha: Mixture(tree_map(lambda leaf: leaf.softmax(dim=-1), alpha)),
            0.5,
            hidden,
        )
        alpha = {"cell": torch.randn(6, 5, generator=generator("alpha"), dtype=torch.float64)}
        return problem, alpha, problem.init(alpha, generator("run")), Segment([train], {1: valid})

    return build


def estimate(estimator, situation):
    problem, alpha, inner, segment = situation
    return estimator.estimate(problem, alpha, inner, segment, generator("noise"))


def relative_error(found: Tree, expected: Tree) -> float:
    return float(norm({key: found[key] - expected[key] for key in expected}) / norm(expected))


def assert_is_derivative(grad: Tree, function, alpha: Tree) -> None:
    for index in range(4):
        rng = generator("direction", index)
        direction = {"cell": torch.randn(6, 5, generator=rng, dtype=torch.float64)}
        size = 1e-5
        ends = [function(add(alpha, direction, side)) for side in (size, -size)]
        assert float(dot(grad, direction)) == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-5)


@pytest.mark.parametrize("clip", [None, 0.25, 1e3], ids=["unclipped", "clipped", "within the limit"])
def test_unrolled_is_the_derivative_of_step_and_loss(bilevel, clip):
    problem, alpha, inner, segment = bilevel(unroll_clip=clip)

    def after_one_step(alpha):
        moved = inner_step(problem, alpha, inner, segment.inner[0])
        return float(problem.outer_loss(alpha, moved.params, segment.outer[1]))

    found = estimate(EXACT, (problem, alpha, inner, segment))
    assert float(found.loss) == pytest.approx(after_one_step(alpha), rel=1e-12)
    assert_is_derivative(found.grad, after_one_step, alpha)


def test_first_order_is_the_partial_derivative(bilevel):
    problem, alpha, inner, segment = bilevel()
    grad = estimate(FIRST, (problem, alpha, inner, segment)).grad
    assert_is_derivative(
        grad, lambda moved: float(problem.outer_loss(moved, inner.params, segment.outer[1])), alpha
    )


@pytest.mark.parametrize("derivative", ["exact", "constant", "authors"])
@pytest.mark.parametrize("clip", [0.25, 1e3])
def test_finite_difference_agrees_with_unrolled_under_common_masks(bilevel, derivative, clip):
    situation = bilevel(unroll_clip=clip, unroll_clip_derivative=derivative, unroll_clip_valid=True)
    exact = estimate(EXACT, situation).grad
    assert relative_error(estimate(NARROW, situation).grad, exact) < 1e-4
    assert relative_error(estimate(FIRST, situation).grad, exact) > 0.01


@pytest.mark.parametrize(("estimator", "error"), [(FIRST, 1e-12), (SECOND, 1e-10)], ids=["first", "second"])
def test_the_fused_form_gives_the_same_hypergradient(bilevel, estimator, error):
    found = []
    for fused in (False, True):
        situation = bilevel()
        situation[0].network.fused = fused
        found.append(estimate(estimator, situation).grad)
    assert relative_error(found[1], found[0]) < error


def test_redrawn_masks_drown_the_finite_difference(bilevel):
    situation = bilevel(noise="redrawn")
    first, second = (estimate(NARROW, situation).grad for _ in range(2))
    common = estimate(NARROW, bilevel()).grad
    assert norm(first) > 100 * norm(common)
    assert relative_error(first, second) > 0.1


def test_the_authors_derivatives_of_clipping_differ_from_the_exact_one(bilevel):
    """constant leaves out how the norm moves; authors scales by limit / norm where nothing is clipped too."""
    grads = {}
    for clip in (0.25, 1e3):
        for derivative in ("exact", "constant", "authors"):
            situation = bilevel(unroll_clip=clip, unroll_clip_derivative=derivative)
            grads[clip, derivative] = estimate(EXACT, situation).grad
    assert relative_error(grads[0.25, "constant"], grads[0.25, "exact"]) > 1e-3
    torch.testing.assert_close(grads[0.25, "authors"], grads[0.25, "constant"])
    torch.testing.assert_close(grads[1e3, "constant"], grads[1e3, "exact"])
    assert relative_error(grads[1e3, "authors"], grads[1e3, "exact"]) > 10


def pulled(limit, derivative, weights):
    """Clipping (3, 4) and pulling weights back through it."""
    grads = {"a": torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)}
    clipped = clip_step(grads, limit, derivative)["a"]
    return clipped.detach(), torch.autograd.grad(clipped, grads["a"], torch.tensor(weights).double())[0]


def test_clipping_by_hand():
    """(3, 4) has norm 5 and direction d = (0.6, 0.8); clipped to 1 it is d, whose derivative is
    (w - (w.d) d) / 5: for w = (1, 0) that is (0.64, -0.48) / 5."""
    expected = {
        (1.0, "exact"): ([0.6, 0.8], [0.128, -0.096]),
        (1.0, "constant"): ([0.6, 0.8], [0.2, 0.0]),
        (1.0, "authors"): ([0.6, 0.8], [0.2, 0.0]),
        (10.0, "exact"): ([3.0, 4.0], [1.0, 0.0]),
        (10.0, "constant"): ([3.0, 4.0], [1.0, 0.0]),
        (10.0, "authors"): ([3.0, 4.0], [2.0, 0.0]),
    }
    for (limit, derivative), (value, slope) in expected.items():
        found = pulled(limit, derivative, [1.0, 0.0])
        torch.testing.assert_close(found[0], torch.tensor(value).double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], torch.tensor(slope).double(), rtol=1e-6, atol=1e-6)


def test_the_exact_derivative_of_clipping_is_the_central_difference():
    grads, weights = (
        {leaf: torch.randn(3, generator=generator(name, leaf), dtype=torch.float64) for leaf in ("a", "b")}
        for name in ("grads", "weights")
    )
    leaves = {key: leaf.clone().requires_grad_() for key, leaf in grads.items()}
    found = torch.autograd.grad(dot(clip_step(leaves, 0.5, "exact"), weights), list(leaves.values()))
    one = {"a": torch.eye(3)[0].double(), "b": torch.zeros(3).double()}
    for direction in (one, weights):
        ends = [float(dot(clip_step(add(grads, direction, s), 0.5, "exact"), weights)) for s in (1e-6, -1e-6)]
        slope = float(dot(dict(zip(grads, found, strict=True)), direction))
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_backward_clipping_is_of_the_whole_tree_and_leaves_values_alone():
    tree = {key: torch.ones((), dtype=torch.float64, requires_grad=True) for key in ("a", "b")}
    clipped = clip_backward(tree, 1.0)
    assert all(clipped[key] == tree[key] for key in tree)
    (3 * clipped["a"] + 4 * clipped["b"]).backward()
    assert [float(leaf.grad or 0) for leaf in tree.values()] == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.fixture
def search(text, recurrent_supernet, machine, options):
    """Builds a search of twelve steps, four passes over the training text."""

    def build(hypergradient=FIRST, dtype=torch.float32, **changes):
        context = Context(text, lambda: recurrent_supernet(dtype), hypergradient, machine, seed=0, steps=12)
        return Darts(dataclasses.replace(options, **changes), context)

    return build


def test_a_text_that_would_begin_anew_at_each_step_is_refused(search):
    with pytest.raises(UserError, match="a text, which is read in order"):
        search(valid_batches="fresh")


def test_one_step_against_torchs_optimizers(search):
    """Alpha by Adam on the validation loss, then clipped SGD on the training loss and the penalty."""
    run = search(clip=0.05)
    network = copy.deepcopy(run.network)
    network.fused = False  # the plain form
    alpha = run.alpha["cell"].detach().clone().requires_grad_()
    adam = torch.optim.Adam([alpha], lr=0.1, weight_decay=1e-3)
    descent = torch.optim.SGD(network.parameters(), lr=0.5 * 4 / 35, weight_decay=1e-3)
    hidden = {"train": None, "valid": None}
    for index in range(3):
        for split in ("valid", "train"):
            batch = run.task.batch(split, index)
            with seeded(*batch.key):
                weights = {"cell": alpha.softmax(dim=-1)}
                output = network(batch.x, hidden[split], Mixture(weights))
            hidden[split] = {"hidden": output.state["hidden"].detach()}
            loss = run.task.loss(output.logits, batch)
            if split == "valid":
                alpha.grad = torch.autograd.grad(loss, alpha)[0]
                adam.step()
                continue
            descent.zero_grad()
            (loss + output.penalty).backward()
            assert torch.nn.utils.clip_grad_norm_(network.parameters(), 0.05) > 0.05
            descent.step()
        found = run.step(index)
        torch.testing.assert_close(found["train/loss"], loss.detach())
        torch.testing.assert_close(run.streams.hidden, hidden, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run.alpha["cell"], alpha, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(run.inner.params, dict(network.named_parameters()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("estimator", [FIRST, SECOND, EXACT], ids=["first", "difference", "unrolled"])
def test_hidden_states_are_carried_and_start_again_with_the_text(search, estimator):
    run, starts = search(estimator), []
    words = run.network.words
    start = words.start
    words.start = lambda batch, state: starts.append(state) or start(batch, state)
    for index in range(4):
        starts.clear()
        before = copy.deepcopy(run.streams.hidden)
        run.step(index)
        assert set(run.streams.hidden) == {"train", "valid"}
        if index in (0, 3):
            assert starts == [None] * len(starts)
        else:
            assert not torch.equal(before["train"]["hidden"], before["valid"]["hidden"])
            used = {
                "train" if torch.equal(s["hidden"], before["train"]["hidden"]) else "valid" for s in starts
            }
            assert used == {"train", "valid"}
            torch.testing.assert_close(starts[-1], before["train"], rtol=0, atol=0)


def test_the_validation_text_starts_again_with_the_training_text(search):
    """Three batches of train against two of valid: places 0 1 0, 0 1 0; keys, and so masks, are all new."""
    run = search()
    indices = [run.streams.valid(index).key[1] for index in range(6)]
    assert indices == [0, 1, 2, 4, 5, 6]
    assert [index % 2 for index in indices] == [0, 1, 0, 0, 1, 0]


def test_the_rate_is_in_proportion_to_the_length(search):
    assert search(nominal_time=8)._problem(0).learning_rate == pytest.approx(0.5 * 4 / 8)
    assert search(nominal_time=None)._problem(0).learning_rate == 0.5


@pytest.mark.parametrize("estimator", [FIRST, SECOND, EXACT], ids=["first", "difference", "unrolled"])
def test_resume_is_bit_exact(search, estimator):
    straight, first, second = (search(estimator, noise="redrawn") for _ in range(3))
    rows = [straight.step(index) for index in range(5)]
    halves = [first.step(index) for index in range(2)]
    state = first.state_dict()
    first.step(2)
    second.load_state_dict(state)
    halves += [second.step(index) for index in range(2, 5)]
    torch.testing.assert_close(halves, rows, rtol=0, atol=0)
    torch.testing.assert_close(second.state_dict(), straight.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_evaluation_has_no_dropout_and_changes_nothing(search, statistics):
    run = search(evaluation_statistics=statistics)
    run.step(0)
    before = run.state_dict()
    found = run.evaluate("valid")
    torch.testing.assert_close(run.state_dict(), before, rtol=0, atol=0)
    network = copy.deepcopy(run.network).eval()
    network.load_state_dict(run.inner.params, strict=False)
    network.cell.norm.train(statistics == "batch")
    state, losses, weights = None, [], {"cell": run.alpha["cell"].softmax(dim=-1)}
    for batch in run.task.sweep("valid"):
        output = network(batch.x, state, Mixture(weights))
        state = output.state
        losses.append(run.task.loss(output.logits, batch).detach())
    torch.testing.assert_close(found["valid/loss"], torch.stack(losses).mean())
    torch.testing.assert_close(found["valid/perplexity"], found["valid/loss"].exp())
    assert "genotype/skips_cell" in found
    assert run.network.training


def test_artifacts_are_a_recurrent_genotype(search, tmp_path):
    run = search(alpha_init="normal")
    run.artifacts(tmp_path)
    strengths = {"cell": run.alpha["cell"].softmax(dim=-1)}
    assert load(str(tmp_path / "genotype.json")) == run.network.discretise(strengths)


def test_drop_path_is_refused(search, options):
    regularisation = dataclasses.replace(options.regularisation, drop_path=0.1)
    with pytest.raises(UserError, match=r"set method\.regularisation\.drop_path=0"):
        search(regularisation=regularisation)
