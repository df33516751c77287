"""What the monitor measures, against independent answers, and what a search does about it."""

import copy
import json

import pytest
import torch

import tasks  # noqa: F401
from metalearn.build import build
from metalearn.compose import compose
from metalearn.darts.measure import Measure
from metalearn.darts.search import Darts
from metalearn.darts.space import one_path, set_evaluation
from metalearn.darts.supernet import Supernet
from metalearn.hypergradient.config import FirstOrderOptions
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.method import Context
from metalearn.rng import generator, seeded

FIRST = FirstOrder(FirstOrderOptions("first_order"))
LOUD = ["method.alpha_init=normal", "method.alpha_scale=1.0", "method.alpha_learning_rate=0.1"]
WATCHED = [
    *LOUD, "method.monitor.every=1", "method.monitor.iterations=2", "method.regularisation.drop_path=0.5",
    "method.stopping.window=1", "method.stopping.ratio=0.9",
]  # fmt: skip
ADAPTIVE = [
    *WATCHED, "method.regularisation.weight_decay=adaptive", "method.regularisation.factor=10",
    "method.regularisation.largest_weight_decay=0.03",
]  # fmt: skip


@pytest.fixture
def search(images, machine):
    """Builds a search of twelve steps on the tiny task, in cells of one node."""

    def build(lines, dtype=torch.float32):
        tiny = ["network.cells=3", "network.channels=2", "network.nodes=1"]
        config = compose(["method=darts", "network=darts_supernet", "task=digits", *tiny, *lines])
        task = images(dtype)

        def network():
            with seeded("cells of one node"):
                return Supernet(config.network, task.spec).to(dtype)

        run = Darts(config.method, Context(task, network, FIRST, machine, 0, 12))
        if dtype == torch.float64:
            run.alpha = {kind: leaf.detach().double().requires_grad_() for kind, leaf in run.alpha.items()}
        return run

    return build


def measure(run):
    return Measure(run.options.monitor, run._problem(0), run.inner.params)


def batch_losses(run, mixture):
    """By hand: no dropout, statistics of the batch."""
    network = run.network
    set_evaluation(network, batch_statistics=True)
    batches = [run.task.batch("search_valid", index) for index in range(run.options.monitor.batches)]
    losses = [run.task.loss(network(batch.x, mixture=mixture).logits, batch) for batch in batches]
    outputs = [network(batch.x, mixture=mixture).logits.argmax(1) for batch in batches]
    errors = [100 * (found != batch.y).double().mean() for found, batch in zip(outputs, batches, strict=True)]
    network.train()
    return torch.stack(losses).mean(), torch.stack(errors).mean()


def dense_hessian(run):
    """Of the mean loss over the monitor's batches, by alpha in one vector."""
    kinds = list(run.alpha)
    shapes = {kind: run.alpha[kind].shape for kind in kinds}

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        alpha = {kind: part.reshape(shapes[kind]) for kind, part in zip(kinds, parts, strict=True)}
        return batch_losses(run, run._problem(0).mix(alpha))[0]

    flat = torch.cat([run.alpha[kind].detach().flatten() for kind in kinds])
    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.slow
def test_eigenvalue_is_that_of_the_dense_hessian(search):
    run = search([*LOUD, "method.monitor.batches=2", "method.monitor.iterations=32"], torch.float64)
    dense = dense_hessian(run)
    expected = torch.linalg.eigvalsh(dense)[-1]
    found = measure(run).eigenvalue(run.alpha, generator("start"))["monitor/eigenvalue"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)

    run.options.monitor.iterations, run.options.monitor.eigenvalue = 4, "power"
    found = measure(run).eigenvalue(run.alpha, generator("start"))["monitor/eigenvalue"]
    rng = generator("start")
    vector = torch.cat([torch.randn(leaf.shape, generator=rng).flatten() for leaf in run.alpha.values()])
    vector = torch.linalg.matrix_power(dense, 3) @ vector.double()
    torch.testing.assert_close(found, vector @ dense @ vector / (vector @ vector), rtol=1e-9, atol=0)


def test_gap_is_the_error_of_the_chosen_operations_minus_the_supernets(search):
    run = search([*LOUD, "method.monitor.batches=2", "method.alpha_scale=3"])
    for index in range(2):
        run.step(index)
    genotype = run.network.discretise(run._strengths())
    found = measure(run).gap(run.alpha, genotype)
    run.network.load_state_dict(run.inner.params, strict=False)
    path = one_path(run.network.encode(genotype), run.alpha["normal"].detach())
    (_, discrete), (_, mixed) = batch_losses(run, path), batch_losses(run, run._problem(0).mix(run.alpha))
    assert discrete != mixed
    torch.testing.assert_close(found["monitor/supernet"], mixed)
    torch.testing.assert_close(found["monitor/gap"], discrete - mixed)


@pytest.mark.slow
def test_measuring_changes_nothing_but_the_history(search):
    """With dropped paths, fused kernels and running statistics in place."""
    lines = ["method.regularisation.drop_path=0.5"]
    plain, watched = search(lines), search([*lines, "method.monitor.every=1"])
    for run in (plain, watched):
        run.network.fused = True
    for index in range(2):
        metrics = plain.step(index)
        seen = watched.step(index)
        assert {name: seen[name] for name in metrics} == metrics
    before, after = plain.state_dict(), watched.state_dict()
    assert watched.network.fused
    assert watched.network.training
    assert (before.pop("monitor")["history"]["steps"], after.pop("monitor")["history"]["steps"]) == (
        [],
        [1, 2],
    )
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_no_monitor_measures_nothing(search, monkeypatch):
    monkeypatch.setattr("metalearn.darts.monitor.Measure", None)
    monkeypatch.setattr(Darts, "_place", None)
    assert not any(name.startswith(("monitor/", "genotype/")) for name in search([]).step(0))


@pytest.mark.slow
def test_latest_values_stay_in_every_steps_metrics_also_after_a_resume(search):
    lines = [*WATCHED, "method.monitor.every=2"]
    run = search(lines)
    rows = [run.step(index) for index in range(5)]
    names = {"monitor/eigenvalue", "monitor/gap", "monitor/supernet", "genotype/skips_normal"}
    assert not names & set(rows[0])
    assert all(names <= set(row) for row in rows[1:])
    assert {name: rows[1][name] for name in names} == {name: rows[2][name] for name in names}
    assert rows[3]["monitor/eigenvalue"] == rows[4]["monitor/eigenvalue"] != rows[2]["monitor/eigenvalue"]
    resumed = search(lines)
    resumed.load_state_dict(run.state_dict())
    assert resumed.step(5) == run.step(5)
    assert run.evaluate("valid")["genotype/skips_normal"] == run.monitor.metrics()["genotype/skips_normal"]


def test_history_is_written(search, tmp_path):
    run = search([*WATCHED, "method.monitor.every=2"])
    seen = []
    for index in range(4):
        run.step(index)
        seen.append((run._strengths(), run.network.discretise(run._strengths())))
    run.artifacts(tmp_path)
    written = json.loads((tmp_path / "alpha_history.json").read_text())
    assert written["steps"] == [2, 4]
    assert written["operations"]["reduce"][3] == "skip_connect"
    for kind in ("normal", "reduce"):
        expected = torch.stack([strengths[kind] for strengths, _ in seen[1::2]])
        assert expected[0].ne(expected[1]).any()
        torch.testing.assert_close(torch.tensor(written["strengths"][kind], dtype=torch.float64), expected)
    assert written["genotypes"] == [json.loads(genotype.to_json()) for _, genotype in seen[1::2]]
    assert len(written["values"]["monitor/eigenvalue"]) == 2
    plain = tmp_path / "plain"
    plain.mkdir()
    search([]).artifacts(plain)
    assert not (plain / "alpha_history.json").exists()


def rising(run, eigenvalues, monkeypatch):
    """Let measurements find these eigenvalues."""
    values = iter(eigenvalues)
    found = lambda *_: {"monitor/eigenvalue": torch.tensor(next(values))}  # noqa: E731
    monkeypatch.setattr("metalearn.darts.measure.Measure.eigenvalue", found)
    return run


def test_a_risen_eigenvalue_ends_the_search_with_alpha_from_before(search, monkeypatch, tmp_path):
    lines = [*WATCHED, "method.stopping.kind=eigenvalue", "method.stopping.window=2"]
    run = rising(search(lines), [1.0, 1.0, 1.0, 1.0, 2.0], monkeypatch)
    alphas = {}
    for index in range(5):
        assert not run.ended
        run.step(index)
        alphas[index + 1] = {kind: leaf.detach().clone() for kind, leaf in run.alpha.items()}
    assert "rose from 1 to 1.5 (means over 2 measurements) at step 5; alpha is that of step 3" in run.ended
    torch.testing.assert_close(alphas[5], alphas[3], rtol=0, atol=0)
    assert not torch.equal(alphas[4]["normal"], alphas[3]["normal"])
    run.artifacts(tmp_path)
    genotypes = json.loads((tmp_path / "alpha_history.json").read_text())["genotypes"]
    assert json.loads((tmp_path / "genotype.json").read_text()) == genotypes[2]
    resumed = search(lines)
    resumed.load_state_dict(run.state_dict())
    assert resumed.ended == run.ended
    torch.testing.assert_close(dict(resumed.alpha), dict(run.alpha), rtol=0, atol=0)


@pytest.mark.parametrize(("skips", "ends"), [(1, True), (2, False)])
def test_skip_connections_end_the_search(search, skips, ends):
    run = search(
        [*LOUD, "method.monitor.every=2", "method.stopping.kind=skips", f"method.stopping.skips={skips}"]
    )
    with torch.no_grad():
        run.alpha["normal"][:] = torch.tensor([[0.0] * 3 + [9.0] + [0.0] * 4, [0.0] * 4 + [9.0] + [0.0] * 3])
    run.step(0)
    assert not run.ended
    run.step(1)
    assert run.ended == ("the normal cell has 1 skip connections at step 2" if ends else "")


def test_measurements_of_a_warm_up_say_nothing(search, monkeypatch):
    lines = [*WATCHED, "method.stopping.kind=eigenvalue", "method.warm_up=2"]
    run = rising(search(lines), [1.0, 9.0, 20.0, 9.0, 9.0, 20.0], monkeypatch)
    ended = []
    for index in range(6):
        run.step(index)
        ended.append(bool(run.ended))
    assert ended == [False] * 5 + [True]


@pytest.mark.slow
def test_adaptive_weight_decay_goes_back_and_on(search, monkeypatch):
    """Twice up to its largest value; then the stopping rule ends it."""
    lines = [*ADAPTIVE, "method.stopping.kind=eigenvalue"]
    run = rising(search(lines), [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0], monkeypatch)
    places, decays, states, copies = {}, [], [], []
    for index in range(7):
        assert not run.ended
        states.append(run.state_dict())
        copies.append(copy.deepcopy(states[-1]))
        decays.append(run._problem(index).options.weight_decay)
        run.step(index)
        places[index + 1] = run._place()
    assert decays == pytest.approx([3e-4] * 3 + [3e-3] * 2 + [0.03] * 2)
    assert not torch.equal(places[2]["alpha"]["normal"], places[1]["alpha"]["normal"])
    torch.testing.assert_close(places[3], places[2], rtol=0, atol=0)
    torch.testing.assert_close(places[5], places[4], rtol=0, atol=0)
    assert "at step 7; alpha is that of step 6" in run.ended
    torch.testing.assert_close(states, copies, rtol=0, atol=0)  # nothing that moves on is shared with them


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines", [pytest.param(WATCHED, marks=pytest.mark.slow), ADAPTIVE], ids=["watched", "adaptive"]
)
def test_resume_is_bit_exact_at_any_step(search, lines, tmp_path):
    """Adaptive with a ratio that every second pair of measurements is likely to pass."""
    straight = search(lines)
    rows, states = [], []
    for index in range(5):
        states.append(straight.state_dict())
        rows.append(straight.step(index))
    end = straight.state_dict()
    if lines is ADAPTIVE:
        assert straight.monitor.regularisation.raised
    for begin in (2, 4):
        torch.save(states[begin], tmp_path / "state.pt")
        resumed = search(lines)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [resumed.step(index) for index in range(begin, 5)] == rows[begin:]
        torch.testing.assert_close(resumed.state_dict(), end, rtol=0, atol=0)


def test_rules_start_anew_when_the_search_does(search, monkeypatch):
    run = rising(search(ADAPTIVE), [1.0, 9.0], monkeypatch)
    run.step(0)
    assert len(run.monitor.places) == 1
    run.monitor.restart()
    run.step(1)
    assert (len(run.monitor.places), run.monitor.regularisation.raised) == (1, 0)


def test_texts_are_measured_as_one_sequence():
    """The second batch starts from the state after the first, for the supernet and for the eigenvalue."""
    lines = ["recipe=darts/ptb_search", "task=python_docs", "task.batch=3", "task.time=5", "network.units=6"]
    rules = ["method.monitor.batches=2", "method.monitor.iterations=1", "method.alpha_init=normal"]
    run = build(compose([*lines, "network.nodes=2", "machine=cpu", *rules])).method
    assert isinstance(run, Darts)
    first, second = (run.task.batch("valid", index) for index in range(2))
    network, state, losses = run.network, None, []
    set_evaluation(network, batch_statistics=True)
    network.fused = False
    for batch in (first, second):
        output = network(batch.x, state, run._problem(0).mix(run.alpha))
        state = output.state
        losses.append(run.task.loss(output.logits, batch))
    network.train()
    network.fused = True  # without second derivatives: measuring must set it aside
    found = measure(run).gap(run.alpha, network.discretise(run._strengths()))["monitor/supernet"]
    torch.testing.assert_close(found.float(), torch.stack(losses).mean().detach())
    grad = torch.autograd.grad(torch.stack(losses).mean(), run.alpha["cell"], create_graph=True)[0]
    start = torch.randn(grad.shape, generator=generator("start"))
    start /= start.norm()
    curved = torch.autograd.grad((grad * start).sum(), run.alpha["cell"])[0]
    eigenvalue = measure(run).eigenvalue(run.alpha, generator("start"))["monitor/eigenvalue"]
    torch.testing.assert_close(eigenvalue.float(), (curved * start).sum(), rtol=1e-3, atol=1e-7)
