"""P-DARTS: pruning by hand, the timetable, and a search that grows deeper."""

import dataclasses
import gc
import weakref

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.config import StagesOptions
from metalearn.darts.genotype import load
from metalearn.darts.operations import CANDIDATES
from metalearn.darts.search import Darts
from metalearn.darts.stages import Schedule, pruned
from metalearn.hypergradient.config import FirstOrderOptions
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.method import Context
from metalearn.registry import UserError

STAGES = StagesOptions([4, 5], [4, 2], [0.1, 0.4, 0.7])
STEPS = 7  # stages begin at 0, 3 and 5


@pytest.fixture(scope="session")
def options():
    return compose(["method=darts", "network=darts_supernet", "task=digits"]).method


@pytest.fixture
def search(images, tiny_supernet, machine, options):
    """Builds a search in three stages."""

    def build(steps=STEPS, stages=STAGES, **changes):
        changes = {"alpha_init": "normal", "alpha_learning_rate": 0.1, "stages": stages, **changes}
        estimator = FirstOrder(FirstOrderOptions("first_order"))
        task, network = images(torch.float32), lambda: tiny_supernet(torch.float32)
        context = Context(task, network, estimator, machine, 0, steps)
        return Darts(dataclasses.replace(options, **changes), context)

    return build


def test_pruning_by_hand():
    """Row 0: none (0.4) stays, being strong; of the equal 0.1 the earlier. Row 1: only what was allowed."""
    strengths = {"normal": torch.tensor([[0.4, 0.1, 0.3, 0.1, 0.1], [0.0, 0.5, 0.0, 0.2, 0.3]])}
    allowed = {"normal": torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1]], dtype=torch.bool)}
    three = pruned(strengths, allowed, 3)["normal"]
    assert three.int().tolist() == [[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]]
    two = pruned(strengths, {"normal": three}, 2)["normal"]
    assert two.int().tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]
    assert torch.equal(pruned(strengths, allowed, 4)["normal"][1], allowed["normal"][1])


def test_stages_share_the_steps():
    schedule = Schedule(STAGES, STEPS)
    assert [schedule.at(index).number for index in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [schedule.stage(number)[1:] for number in range(3)] == [(0, 3), (3, 5), (5, 7)]
    assert [schedule.at(index).progress(index) for index in (0, 1, 3, 4, 5, 6, 8)] == [
        0, 1 / 3, 0, 0.5, 0, 0.5, 1,
    ]  # fmt: skip
    dropout = [schedule.skip_dropout(index) for index in range(7)]
    assert dropout == pytest.approx([0.1, 0.2 / 3, 0.1 / 3, 0.4, 0.2, 0.7, 0.35])
    assert Schedule(StagesOptions([], [], []), 5).at(4).progress(4) == 0.8


def test_each_stage_is_deeper_and_has_the_strongest_operations_of_the_last(search):
    run = search()
    for stage, (cells, kept, begin) in enumerate([(3, 8, 0), (4, 4, 3), (5, 2, 5)]):
        before = {kind: leaf.detach().clone() for kind, leaf in run.alpha.items()}
        allowed = run.allowed
        run.step(begin)
        assert (run.stage, len(run.network.cells)) == (stage, cells)
        for kind, mask in run.allowed.items():
            assert mask.sum(dim=1).tolist() == [kept] * len(mask)
            if stage:
                shares = before[kind].softmax(dim=1).masked_fill(~allowed[kind], -1.0)
                weakest_kept = shares.masked_fill(~mask, 2.0).amin(dim=1)
                assert (weakest_kept >= shares.masked_fill(mask, -1.0).amax(dim=1)).all()
        built = {name for cell in run.network.cells for edge in cell.edges for name in edge.operations}
        assert built <= set(CANDIDATES)
        edge, names = run.network.cells[0].edges[0], run.allowed["normal"][0]
        assert set(edge.operations) == {
            n for n, used in zip(CANDIDATES, names, strict=True) if used and n != "none"
        }
        for index in range(begin + 1, run.schedule.stage(stage).end):
            run.step(index)
    assert set(run.inner.params) == {key for key, _ in run.network.named_parameters()}


def test_a_stage_starts_afresh(search):
    """Alpha, Adam, momentum and the learning rate's cosine; weights that no other stage had."""
    run = search(momentum=0.0, warm_up=1, schedule_every="step")
    for index in range(3):
        run.step(index)
    far = float(run.alpha["normal"].detach().abs().max())
    stem = run.inner.params["stem.0.weight"]
    assert far > 0.05
    assert run._learning_rate(2) < run._learning_rate(0)
    run.step(3)  # the warm-up of the second stage
    assert float(run.alpha["normal"].detach().abs().max()) < 0.01
    assert not run.alpha_optimizer.state
    assert run._learning_rate(3) == run._learning_rate(0)
    assert run._learning_rate(4) == pytest.approx(0.0125)
    assert float((run.inner.params["stem.0.weight"] - stem).norm()) > 0.3
    assert run.network.skip_dropout == 0.4
    run.step(4)
    assert float(run.alpha["normal"].detach().abs().max()) > 0.05


def test_the_network_of_a_past_stage_is_freed(search):
    run = search()
    run.step(0)
    old, params = weakref.ref(run.network), weakref.ref(run.inner.params["stem.0.weight"])
    run.step(3)
    gc.collect()
    assert old() is None
    assert params() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_resume_across_boundaries_is_bit_exact(search, place):
    straight, first, second = search(), search(), search()
    rows = [straight.step(index) for index in range(STEPS)]
    halves = [first.step(index) for index in range(place)]
    second.load_state_dict(first.state_dict())
    halves += [second.step(index) for index in range(place, STEPS)]
    torch.testing.assert_close(halves, rows, rtol=0, atol=0)
    torch.testing.assert_close(second.state_dict(), straight.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(second.evaluate("valid"), straight.evaluate("valid"), rtol=0, atol=0)


def test_a_state_is_taken_up_from_any_stage(search):
    run, other = search(), search()
    states = {}
    for index in range(STEPS):
        states[index] = run.state_dict()
        run.step(index)
    for index in (6, 4, 1):
        other.load_state_dict(states[index])
        torch.testing.assert_close(other.state_dict(), states[index], rtol=0, atol=0)
    other.step(1)
    torch.testing.assert_close(other.state_dict(), states[2], rtol=0, atol=0)


@pytest.mark.slow
def test_the_genotype_of_the_last_stage_has_what_is_left(search, tmp_path):
    run = search()
    for index in range(STEPS):
        run.step(index)
    run.artifacts(tmp_path)
    found = run.network.encode(load(str(tmp_path / "genotype.json")))
    for kind, mask in found.items():
        assert (mask <= run.allowed[kind]).all()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (StagesOptions([4], [4, 2], []), "1 cells and 2 operations"),
        (StagesOptions([4], [8], []), "an edge of this space has 8 to begin with; .* at most 7"),
        (StagesOptions([4, 5], [2, 4], []), "must fall from stage to stage"),
        (StagesOptions([4, 5], [4, 2], [0.1]), "1 values for 3 stages"),
        (StagesOptions([4] * 7, [8, 7, 6, 5, 4, 3, 2], []), "7 are left for 8 stages"),
    ],
)
def test_stages_that_make_no_sense_are_refused(search, stages, message):
    with pytest.raises(UserError, match=message):
        search(stages=stages)


def test_stages_are_not_stopped_early(search, options):
    with pytest.raises(UserError, match="need all of the steps"):
        search(stopping=dataclasses.replace(options.stopping, kind="skips"))
