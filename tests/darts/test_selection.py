"""The skip limit by hand; decisions by perturbation where alpha is wrong, and over a whole search."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.config import SelectionOptions
from metalearn.darts.genotype import AnyGenotype, Edge, Genotype, load
from metalearn.darts.operations import CANDIDATES
from metalearn.darts.search import Darts
from metalearn.darts.selection import Decision, Timetable, decide, limited
from metalearn.darts.space import Choices, SearchSpace
from metalearn.hypergradient.config import FirstOrderOptions
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.method import Context
from metalearn.network import Output
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Task, TaskSpec

SKIP, SEP, POOL = (CANDIDATES.index(name) for name in ("skip_connect", "sep_conv_3x3", "max_pool_3x3"))
FIRST = FirstOrder(FirstOrderOptions("first_order"))


@pytest.fixture(scope="session")
def options():
    return compose(["method=darts", "network=darts_supernet", "task=digits"]).method


def perturbation(steps: int, batches: int = 2) -> SelectionOptions:
    return SelectionOptions("perturbation", steps, 1e-9, batches, None)


def strengths(**entries: float) -> dict[str, torch.Tensor]:
    """A cell of two nodes, edges 0-1 into node 2 and 2-4 into node 3; `skip0=0.5` is edge 0's skip."""
    table = torch.full((5, len(CANDIDATES)), 0.01, dtype=torch.float64)
    for name, value in entries.items():
        table[int(name[-1]), {"skip": SKIP, "sep": SEP, "pool": POOL}[name[:-1]]] = value
    return {"normal": table, "reduce": table.clone()}


def cells(genotype) -> list[list[Edge]]:
    return [list(node) for node in genotype.normal.nodes]


HAND = strengths(skip0=0.5, sep0=0.2, skip1=0.6, pool1=0.1, skip2=0.7, sep2=0.1, skip3=0.3, sep4=0.25)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (None, [[("skip_connect", 1), ("skip_connect", 0)], [("skip_connect", 0), ("skip_connect", 1)]]),
        # the weakest is edge 3's (0.3); with it gone edge 4's convolution (0.25) takes its place
        (3, [[("skip_connect", 1), ("skip_connect", 0)], [("skip_connect", 0), ("sep_conv_3x3", 2)]]),
        # then edge 0's (0.5): node 2 has no third edge, so the edge's next best stands
        (2, [[("skip_connect", 1), ("sep_conv_3x3", 0)], [("skip_connect", 0), ("sep_conv_3x3", 2)]]),
        # then edge 1's (0.6): its pool (0.1) is now the weaker of the two
        (1, [[("sep_conv_3x3", 0), ("max_pool_3x3", 1)], [("skip_connect", 0), ("sep_conv_3x3", 2)]]),
        # last edge 2's (0.7): its convolution (0.1) is above what edge 3 has left (0.01)
        (0, [[("sep_conv_3x3", 0), ("max_pool_3x3", 1)], [("sep_conv_3x3", 2), ("sep_conv_3x3", 0)]]),
    ],
)
def test_the_weakest_skips_go_one_at_a_time(tiny_supernet, most, expected):
    found = limited(tiny_supernet(torch.float64), HAND, most)
    assert cells(found) == [[Edge(*edge) for edge in node] for node in expected]
    assert found.skips() == {"normal": 4 if most is None else most, "reduce": 4}


def test_a_skip_that_nothing_can_replace_stays(tiny_supernet):
    """Edge 0 has nothing but its skip, and node 2 no third edge: the stronger edge 1 gives way."""
    alone = strengths(skip1=0.6, pool1=0.1, sep2=0.5, sep3=0.4)
    alone["normal"][0] = 0.0
    alone["normal"][0, SKIP] = 0.2
    space = tiny_supernet(torch.float64)
    assert cells(limited(space, alone, 1))[0] == [Edge("skip_connect", 0), Edge("max_pool_3x3", 1)]
    assert limited(space, alone, 0).skips()["normal"] == 1


def test_a_decision_keeps_what_hurts_most_by_error_and_then_by_loss():
    choices = {"cell": Choices(("none", "a", "b", "c"), (1, 1), (0, 0), torch.ones(2, 4, dtype=torch.bool))}
    allowed = {"cell": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]], dtype=torch.bool)}
    weights = {"cell": torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.0, 0.3]])}
    asked = []

    def judge(mixture):
        """The error is 9 without (0, a) or (0, c); without (0, c) the loss is higher."""
        asked.append(mixture)
        row = mixture.running["cell"][0]
        return torch.tensor([9.0, 1.0] if not row[1] else [9.0, 2.0] if not row[3] else [5.0, 7.0])

    found = decide(Decision("cell", (0,), 1), choices, weights, allowed, judge)
    assert found["cell"].int().tolist() == [[0, 0, 0, 1], [1, 1, 0, 1]]
    assert len(asked) == 3
    torch.testing.assert_close(asked[1].weights["cell"][0], torch.tensor([0.1, 0.2, 0.0, 0.4]))
    assert asked[1].running["cell"] == [[True, True, False, True], [True, True, False, True]]
    assert allowed["cell"].sum() == 7
    assert weights["cell"][0, 2] == 0.3
    both = decide(Decision("cell", (0, 1), 2), choices, weights, allowed, judge)
    assert both["cell"].int().tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    single = {"cell": torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)}
    asked.clear()
    assert decide(Decision("cell", (0,), 1), choices, weights, single, judge)["cell"][0].tolist() == [
        False, False, True, False,
    ]  # fmt: skip
    assert not asked


def test_the_timetable_covers_edges_and_then_nodes_in_an_order_of_the_seed(tiny_supernet):
    space = tiny_supernet(torch.float32)
    table = Timetable(perturbation(3), space, 0, 30)
    assert len(table.rounds) == 6
    for place, kind in enumerate(("normal", "reduce")):
        column = [row[place] for row in table.rounds]
        assert sorted(decision.edges[0] for decision in column[:5]) == [0, 1, 2, 3, 4]
        assert column[5] == Decision(kind, (2, 3, 4), 2)
    assert table.begin == 30 - 16
    assert [table.due(index) for index in (13, 14, 16, 17, 28, 29)] == [0, 1, 1, 2, 5, 6]
    orders = {
        tuple(row[0].edges for row in Timetable(perturbation(3), space, s, 30).rounds) for s in range(5)
    }
    assert len(orders) > 1
    at_once = Timetable(perturbation(0), space, 0, 30)
    assert [at_once.due(index) for index in (28, 29)] == [0, 6]
    with pytest.raises(UserError, match=r"got 16; selection by perturbation takes the last 16"):
        Timetable(perturbation(3), space, 0, 16)
    never = Timetable(SelectionOptions("strength", 3, 0.1, 1, None), space, 0, 30)
    assert (never.begin, never.due(29)) == (30, 0)


class Signs(Task):
    """Two numbers; the class is the sign of the first, the second says nothing."""

    spec = TaskSpec("signs", "classification", (2,), 2, {}, "error", "", "", "", "")

    def batch(self, split, index):
        x = torch.randn(256, 2, generator=generator(split, index))
        return Batch(x, (x[:, 0] > 0).long(), (split, index))

    def batches(self, split):  # noqa: ARG002
        return 3

    def sweep(self, split):
        assert split == "search_valid"
        yield from (self.batch(split, index) for index in range(3))

    def loss(self, output, batch):
        return torch.nn.functional.cross_entropy(output, batch.y)

    def metrics(self, output, batch):
        error = 100 * (output.argmax(1) != batch.y).float().mean()
        return {"loss": self.loss(output, batch).detach(), "error": error}


@dataclass(frozen=True)
class Pair(AnyGenotype):
    """Two of the three edges, with an operation each."""

    edges: tuple[tuple[int, str], ...]

    def to_json(self):
        return json.dumps(self.edges)

    def skips(self):
        return {"normal": 0}


class ThreeEdges(SearchSpace):
    """One node: three edges add the first number (signal), with gains, or the second one (distractor)."""

    OPERATIONS, GAINS = ("none", "distractor", "signal"), torch.tensor([4.0, 1.0, 2.0])

    def __init__(self):
        super().__init__()
        allowed = torch.ones(3, 3, dtype=torch.bool)
        self.choices = {"normal": Choices(self.OPERATIONS, (3, 3, 3), (0, 1, 2), allowed)}
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, state=None, mixture=None):  # noqa: ARG002
        assert mixture is not None
        weights = mixture.weights["normal"]
        score = self.scale * ((weights[:, 2] @ self.GAINS) * x[:, 0] + 0.2 * weights[:, 1].sum() * x[:, 1])
        return Output(torch.stack([-score, score], dim=1))

    def discretise(self, strengths):
        value, place = strengths["normal"][:, 1:].max(dim=1)
        edges = value.argsort(descending=True)[:2].tolist()
        return Pair(tuple(sorted((edge, self.OPERATIONS[1 + int(place[edge])]) for edge in edges)))

    def encode(self, genotype):
        assert isinstance(genotype, Pair)
        mask = torch.zeros(3, 3, dtype=torch.bool)
        for edge, name in genotype.edges:
            mask[edge, self.OPERATIONS.index(name)] = True
        return {"normal": mask}

    def sample(self, rng):  # noqa: ARG002
        return Pair(((0, "signal"), (1, "signal")))

    def restricted(self, cells, allowed):
        raise NotImplementedError


def toy_search(options, machine, seed: int, steps: int) -> Darts:
    """Alpha favours what does not count; three steps before and with the first decision."""
    changes = {"learning_rate": 1e-9, "final_learning_rate": 0.0, "alpha_learning_rate": 1e-9}
    chosen = dataclasses.replace(options, selection=perturbation(steps), **changes)
    search = Darts(chosen, Context(Signs(), ThreeEdges, FIRST, machine, seed, 3 * steps + 3))
    with torch.no_grad():
        search.alpha["normal"].copy_(torch.tensor([[0.0, 2.0, 1.0], [0.0, 3.0, 1.0], [0.0, 2.5, 1.0]]))
    return search


def test_resume_between_decisions_is_bit_exact(options, machine):
    straight, first = (toy_search(options, machine, 0, 2) for _ in range(2))
    for index in range(9):
        expected = straight.step(index)
        torch.testing.assert_close(first.step(index), expected, rtol=0, atol=0)
        state, first = first.state_dict(), toy_search(options, machine, 0, 2)
        first.load_state_dict(state)
        torch.testing.assert_close(first.state_dict(), straight.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [0, 2])
def test_perturbation_finds_what_the_weights_use_where_alpha_points_elsewhere(
    machine, options, monkeypatch, seed, steps
):
    """Alpha favours the distractor, and edges 1 and 2; the signal is what counts, through edges 0 and 2."""
    search, total = toy_search(options, machine, seed, steps), 3 * steps + 3
    task = search.task
    read = []
    sweep = task.sweep
    monkeypatch.setattr(task, "sweep", lambda split: (read.append(b) or b for b in sweep(split)))
    wrong = Pair(((1, "distractor"), (2, "distractor")))
    for index in range(total):
        assert index > 2 or search.network.discretise(search._strengths()) == wrong
        metrics = search.step(index)
        assert ("search_valid/loss" in metrics) == (index < search.timetable.begin)
    assert search.allowed["normal"].int().tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert search.network.discretise(search._strengths()) == Pair(((0, "signal"), (2, "signal")))
    assert float(search.evaluate("valid")["valid/error"]) == 0
    judged = [batch.key[1] for batch in read]
    assert judged[:18] == [0, 1] * 9  # 3 x 2 operations and 3 edges, on the first two batches each


@pytest.fixture
def search(images, tiny_supernet, machine, options):
    """Builds a search whose last 11 of 13 steps decide."""

    def build(**changes):
        changes = {"alpha_init": "normal", "selection": perturbation(2, batches=1), **changes}
        context = Context(images(torch.float32), lambda: tiny_supernet(torch.float32), FIRST, machine, 0, 13)
        return Darts(dataclasses.replace(options, **changes), context)

    return build


@pytest.mark.slow
def test_a_search_ends_with_one_genotype_and_resumes_between_decisions(search, options, tmp_path):
    monitor = dataclasses.replace(options.monitor, every=6, iterations=2)
    straight, first = search(monitor=monitor), search(monitor=monitor)
    assert straight.timetable.begin == 2
    rows = [straight.step(index) for index in range(3)]
    frozen = {kind: leaf.detach().clone() for kind, leaf in straight.alpha.items()}
    rows += [straight.step(index) for index in range(3, 13)]
    halves = []
    for index in range(13):
        halves.append(first.step(index))
        if index in (1, 4):
            state, first = first.state_dict(), search(monitor=monitor)
            first.load_state_dict(state)
    torch.testing.assert_close(halves, rows, rtol=0, atol=0)
    torch.testing.assert_close(first.state_dict(), straight.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(dict(straight.alpha), frozen, rtol=0, atol=0)
    assert "monitor/eigenvalue" in rows[-1]
    assert all(value.isfinite().all() for row in rows for value in row.values())
    straight.artifacts(tmp_path)
    found = load(str(tmp_path / "genotype.json"))
    assert isinstance(found, Genotype)
    torch.testing.assert_close(straight.network.encode(found), straight.allowed)


def test_the_weights_learn_at_a_rate_of_their_own_with_fresh_momentum(search):
    run = search()
    for index in range(2):
        run.step(index)
    assert run._learning_rate(2) == 1e-9 < run._learning_rate(1)
    assert 0 < run._learning_rate(12) < run._learning_rate(7) < 1e-9
    for key, leaf in run.inner.slots.items():
        leaf.fill_(1e12 if key.startswith("momentum") else 0)
    before = dict(run.inner.params)
    run.step(2)
    torch.testing.assert_close(run.inner.params, before, rtol=0, atol=1e-6)


def test_skips_are_limited_in_what_is_written(search, options, tmp_path):
    limit = dataclasses.replace(options.selection, skips=1)
    run = search(selection=limit)
    with torch.no_grad():
        run.alpha["normal"][:, SKIP] = 1.0
    assert run.evaluate("valid")["genotype/skips_normal"] == 4
    run.artifacts(tmp_path)
    assert load(str(tmp_path / "genotype.json")).skips()["normal"] == 1


def test_what_makes_no_sense_is_refused(search, options):
    with pytest.raises(UserError, match="a skip has none to give way to"):
        search(selection=dataclasses.replace(perturbation(2), skips=2))
    with pytest.raises(UserError, match="takes the last 16"):
        search(selection=perturbation(3))
    with pytest.raises(UserError, match="need all of the steps"):
        search(stopping=dataclasses.replace(options.stopping, kind="skips"))
