"""The method in the loop's hands: resume, evaluation, learning, what it leaves behind."""

import io
import json

import pytest
import torch

from metalearn.hypergradient.config import (
    FiniteDifferenceOptions,
    FirstOrderOptions,
    NeumannOptions,
    PesOptions,
)
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.pes import Pes
from metalearn.hyperparameters.gain import half_width
from metalearn.hyperparameters.method import Hyperparameters
from metalearn.processes import Processes
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import TaskSpec


def _saved(state):
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_resume_is_bit_exact(kit):
    options = kit.learned(learning_rates="per_layer_and_step", penalties="per_weight")

    def fresh():
        return Hyperparameters(options, kit.context())

    whole, first, second = fresh(), fresh(), fresh()
    rows = [whole.step(index) for index in range(5)]
    for index in range(2):
        first.step(index)
    first.evaluate("valid")
    second.load_state_dict(_saved(first.state_dict()))
    again = [second.step(index) for index in range(2, 5)]

    assert again == rows[2:]
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    assert second.evaluate("valid") == whole.evaluate("valid")


def test_evaluation_is_paired(kit):
    """Equal hyper-parameters gain exactly nothing on any run; a better rate gains on the same runs."""
    method = Hyperparameters(kit.learned(), kit.context())
    same = method.evaluate("test")
    assert same["test/gain_error"] == same["test/gain_error_interval"] == same["test/gain_loss"] == 0
    assert same["test/error"] == same["test/start_error"]
    with torch.no_grad():
        method.meta["log_rate"] += 1.0
    other = method.evaluate("test")
    assert other["test/start_loss"] == same["test/start_loss"]
    assert other["test/gain_loss"] > 0
    difference = other["test/start_error"] - other["test/error"]
    torch.testing.assert_close(other["test/gain_error"], difference)


def test_evaluation_depends_on_the_hyperparameters_alone(kit):
    """Not on what was trained before, nor on earlier evaluations; and it leaves the state as it was."""
    trained, loaded = (Hyperparameters(kit.learned(), kit.context()) for _ in range(2))
    for index in range(3):
        trained.step(index)
    assert trained.evaluate("valid")["valid/start_loss"] == loaded.evaluate("valid")["valid/start_loss"]
    trained.evaluate("test")
    before = _saved(trained.state_dict())
    first = trained.evaluate("valid")
    with torch.no_grad():
        loaded.meta["log_rate"].copy_(trained.meta["log_rate"])
    assert loaded.evaluate("valid") == first
    after = trained.state_dict()
    assert torch.equal(after["meta"]["log_rate"], before["meta"]["log_rate"])
    assert loaded.step(7)["search_valid/loss"] == trained.step(7)["search_valid/loss"]


def test_what_a_gain_is_made_of(kit):
    """Every run by hand: start and learned from the same place, scored on every example of the split."""
    method = Hyperparameters(kit.learned(), kit.context())
    with torch.no_grad():
        method.meta["log_rate"] += 1.0
    runs, network = method.runs, kit.context().network()
    losses = {"start": [], "learned": []}
    for run in range(4):
        for side, meta in (("start", method.gain.start), ("learned", method.meta)):
            network.load_state_dict(runs.train(meta, "test", run).params)
            with torch.no_grad():
                parts = [(network(b.x).logits, b.y) for b in kit.Blobs().sweep("test")]
            logits, y = (torch.cat(column) for column in zip(*parts, strict=True))
            losses[side].append(torch.nn.functional.cross_entropy(logits, y).item())
    told = method.evaluate("test")
    for side, key in (("start", "test/start_loss"), ("learned", "test/loss")):
        assert told[key].item() == pytest.approx(sum(losses[side]) / 4, rel=1e-5)


def test_no_run_shares_start_or_batches_with_another(kit):
    method = Hyperparameters(kit.learned(), kit.context())
    places = [(kind, run) for kind in ("train", "valid", "test") for run in range(3)]
    keys = [batch.key for place in places for batch in method.runs.batches(*place)]
    outer = [method.runs.outer_batch(*place, 1).key for place in places]
    starts = [
        method.problem.init(method.meta, method.runs.stream(*place)).params["layers.1.weight"].sum().item()
        for place in places
    ]
    for found in (keys, outer, starts):
        assert len(set(found)) == len(found)
    assert {key[0] for key in keys} == {"search_train"}
    assert {key[0] for key in outer} == {"search_valid"}


@pytest.mark.slow
@pytest.mark.parametrize("penalties", ["none", "global"])
def test_learns_from_a_bad_start(kit, penalties):
    options = kit.learned(
        horizon=10,
        learning_rate=0.003,
        learning_rates="per_layer",
        penalties=penalties,
        meta_learning_rate=0.5,
    )
    method = Hyperparameters(options, kit.context())
    before = method.evaluate("valid")
    for index in range(10):
        method.step(index)
    after = method.evaluate("valid")
    assert after["valid/loss"] < 0.7 * before["valid/loss"]
    assert after["valid/gain_error"] > after["valid/gain_error_interval"] > 0


def test_a_diverged_run_counts_as_one_that_learned_nothing(kit):
    method = Hyperparameters(kit.learned(horizon=80, learning_rate=1e38, evaluation_runs=2), kit.context())
    told = method.evaluate("valid")
    assert told["valid/diverged"] == told["valid/start_diverged"] == 1
    untrained = [
        method.runs.score(method.problem.init({}, method.runs.stream("valid", run)).params, "search_valid")
        for run in range(2)
    ]
    assert told["valid/loss"].item() == pytest.approx(sum(s["loss"].item() for s in untrained) / 2)


def test_interval():
    """3.1824 is the 97.5 % point of t with 3 degrees of freedom; deviation 1.2910."""
    assert half_width(torch.tensor([1.0, 2.0, 3.0, 4.0])).item() == pytest.approx(2.0542, abs=1e-4)


def test_clip_limits_the_hypergradient(kit):
    method = Hyperparameters(kit.learned(clip=1e-4), kit.context())
    method.step(0)
    assert method.meta["log_rate"].grad.norm().item() == pytest.approx(1e-4, rel=0.05)


class Part(Processes):
    """One of two processes, whose messages are kept and answered by `answer`."""

    def __init__(self, rank, answer=None):
        super().__init__(rank, 2)
        self.answer, self.sent = answer, None

    def average(self, tree):
        self.sent = tree
        return self.answer or tree


def test_processes_share_the_runs(kit):
    """The mean of what two processes send is the gradient of one alone."""
    alone = Hyperparameters(kit.learned(runs=4), kit.context())
    alone.step(2)
    sent = []
    for rank in range(2):
        context = kit.context()
        context.machine.processes = Part(rank)
        Hyperparameters(kit.learned(runs=4), context).step(2)
        sent.append(context.machine.processes.sent)
    assert not torch.equal(sent[0]["grad/log_rate"], sent[1]["grad/log_rate"])
    mean = (sent[0]["grad/log_rate"] + sent[1]["grad/log_rate"]) / 2
    torch.testing.assert_close(mean, alone.meta["log_rate"].grad)


def test_artifacts(kit, tmp_path):
    method = Hyperparameters(
        kit.learned(learning_rates="per_layer_and_step", penalties="per_weight"), kit.context()
    )
    method.step(0)
    method.artifacts(tmp_path)
    found = json.loads((tmp_path / "hyperparameters.json").read_text())
    rates = method.meta["log_rate"].exp()
    assert found["learning_rates"]["layers.3"] == pytest.approx(rates[:, 1].tolist())
    assert found["penalties"]["layers.1.weight"]["count"] == 12
    by_step = json.loads((tmp_path / "learning_rates.json").read_text())
    assert by_step["series"]["layers.1"] == pytest.approx(rates[:, 0].tolist())
    assert len(by_step["x"]) == 4
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert list(curves["series"]) == ["starting", "learned"]
    assert curves["x"] == [0, 1, 2, 3]


def test_mistakes_are_explained(kit):
    def build(context=None, **changes):
        return Hyperparameters(kit.learned(**changes), context or kit.context())

    with pytest.raises(UserError, match="there is nothing to learn"):
        build(learning_rates="fixed")
    with pytest.raises(UserError, match=r"choose hypergradient=unrolled"):
        build(kit.context()._replace(hypergradient=None))
    with pytest.raises(UserError, match="got first_order, which takes no inner step"):
        build(kit.context(estimator=FirstOrder(FirstOrderOptions("first_order"))))
    with pytest.raises(UserError, match="a segment is the whole run"):
        build(kit.context(estimator=Pes(PesOptions("pes", 2, 0.1))))
    with pytest.raises(UserError, match=r"method.horizon=1 \(got 4\)"):
        build(kit.context(estimator=FiniteDifference(FiniteDifferenceOptions("finite_difference", 0.01))))
    with pytest.raises(UserError, match="two numbers from 0"):
        build(betas=[0.9])
    compiled = kit.context()
    compiled.machine.options.compile = True
    with pytest.raises(UserError, match="hyperparameters has no compiled form"):
        build(compiled)
    context = kit.context()
    context.machine.processes = Processes(0, 2)
    with pytest.raises(UserError, match="do not divide over 2 processes"):
        build(context, runs=3)
    task = kit.Blobs()
    task.spec = TaskSpec("f", "few_shot", (4,), 3, {}, "loss", "test", "none", "made", "0")
    with pytest.raises(UserError, match="choose a classification task"):
        build(kit.context(task))


def test_implicit_estimators_need_fixed_rates(kit):
    estimator = Neumann(NeumannOptions("neumann", 2, 0.1, 0.0))
    with pytest.raises(UserError, match=r"method.learning_rates=fixed"):
        Hyperparameters(kit.learned(), kit.context(estimator=estimator))
    with pytest.raises(UserError, match=r"method.outer_every=0 \(got 2\)"):
        Hyperparameters(
            kit.learned(learning_rates="fixed", penalties="global", outer_every=2),
            kit.context(estimator=estimator),
        )


def test_starts_follow_the_networks_own_initialisation(kit):
    """`network.deviation` reaches every fresh start, and no two starts are the same."""
    problem = Hyperparameters(kit.learned(), kit.context(deviation=1e-3)).problem
    starts = [problem.init({}, generator("start", run)).params for run in range(2)]
    assert all(0 < float(leaf.abs().max()) < 1e-2 for leaf in starts[0].values())
    assert all(not torch.equal(leaf, starts[1][name]) for name, leaf in starts[0].items())
