"""Columns with known answers, the routes to a state, and the probe that leaves a run alone."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from metalearn import cli
from metalearn.build import build
from metalearn.compose import compose
from metalearn.diagnose import config as files
from metalearn.diagnose import cost, subject, table
from metalearn.diagnose.accuracy import accuracy
from metalearn.diagnose.probe import Probe
from metalearn.hypergradient.base import Segment
from metalearn.launch import run_one
from metalearn.registry import UserError

MOONS = [
    "task=two_moons", "task.batch=16", "network.hidden=[4]", "method=hyperparameters", "method.horizon=3",
    "method.runs=2", "method.evaluation_runs=2", "hypergradient=unrolled", "log=none",
    "machine=cpu", "train.test=false", "train.steps=4", "train.evaluate_every=0", "train.checkpoint_every=2",
    "train.log_every=1", "train.monitor=null",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _registered():
    cli.register_all()


class Noisy:
    """exact + offset + N(0, deviation^2) in each of two entries."""

    def __init__(self, exact: torch.Tensor, offset: torch.Tensor, deviation: float) -> None:
        self.exact, self.offset, self.deviation = exact, offset, deviation

    def estimate(self, group, rng):  # noqa: ARG002
        noise = self.deviation * torch.randn(2, generator=rng, dtype=torch.float64)
        return {"meta": self.exact + self.offset + noise}, {}


EXACT = torch.tensor([3.0, 4.0], dtype=torch.float64)


def test_columns_of_a_known_deterministic_estimator():
    found = accuracy(Noisy(EXACT, torch.tensor([0.0, 5.0]), 0.0), [[]], [{"meta": EXACT}], draws=9)
    assert found.draws == 1
    assert (found.bias, found.deviation, found.floor) == pytest.approx((1.0, 0.0, 0.0))
    assert found.relative_norm == pytest.approx(math.hypot(3, 9) / 5)
    assert found.cosine == pytest.approx((9 + 36) / (5 * math.hypot(3, 9)))


def test_columns_of_a_known_stochastic_estimator():
    draws, groups = 4000, [[], []]
    found = accuracy(Noisy(EXACT, torch.tensor([0.5, 0.0]), 1.0), groups, [{"meta": EXACT}] * 2, draws)
    assert found.draws == draws
    assert found.deviation == pytest.approx(math.sqrt(2) / 5, rel=0.03)
    assert found.floor == pytest.approx(found.deviation / math.sqrt(draws))
    assert found.bias == pytest.approx(0.1, abs=4 * found.floor)


def test_a_zero_exact_gradient_and_values_that_are_not_finite_are_shown():
    zero = torch.zeros(2, dtype=torch.float64)
    found = accuracy(Noisy(zero, torch.ones(2), 0.0), [[]], [{"meta": zero}], 2)
    assert found.cosine == 0
    assert math.isnan(found.bias)
    bad = accuracy(Noisy(EXACT, torch.tensor([math.nan, 0.0]), 0.0), [[]], [{"meta": EXACT}], 2)
    assert table.cells([table.Row("bad", bad, 1.0, 0)])[1][1] == "nan"


def test_draws_are_of_streams_of_their_own():
    """Each draw of each step once: with a repeated one, or one skipped, the mean would be another."""
    seen = []

    class Recorded(Noisy):
        def estimate(self, group, rng):
            grad, metrics = super().estimate(group, rng)
            seen.append(tuple(grad["meta"].tolist()))
            return grad, metrics

    found = accuracy(Recorded(EXACT, torch.zeros(2), 1.0), [[], []], [{"meta": EXACT}] * 2, 5)
    assert len(seen) == len(set(seen)) == 10
    errors = torch.tensor(seen, dtype=torch.float64).reshape(2, 5, 2).mean(1) - EXACT
    assert found.bias == pytest.approx(float(errors.norm(dim=1).mean()) / 5)


def test_rows_say_their_own_draws_and_the_command_overrules_them():
    own = files.read("learning_rates", {}).estimators
    assert own["evolution 8 pairs"]["draws"] != own["evolution 2 pairs"]["draws"]
    assert {row["draws"] for row in files.read("learning_rates", {"draws": "3"}).estimators.values()} == {3}


def test_a_zero_row_and_an_empty_one_say_why_and_the_summary_has_those_with_values():
    zero = accuracy(Noisy(torch.zeros(2), torch.zeros(2), 0.0), [[]], [{"meta": EXACT}], 2)
    drawn = accuracy(Noisy(EXACT, torch.zeros(2), 1.0), [[]], [{"meta": EXACT}], 4)
    rows = [
        table.Row("a", zero, 1.0, 0, "gives zero"),
        table.Row("b", reason="b: too long"),
        table.Row("c", drawn),
    ]
    assert table.reasons(rows) == ["- a: gives zero", "- b: too long"]
    head, *lines = table.summary({"p": rows})
    assert head == ["problem", "estimator", "cosine", "bias", "ms", "peak MiB"]
    assert lines[0] == ["p", "a", "0", "1", "1", "0"]
    assert lines[1][1] == "c"
    assert "s.e." in lines[1][3]


def test_peak_memory_of_a_known_pattern():
    """Two and one MiB at once, then less; a smaller tensor later does not count."""

    def call() -> object:
        first, second = torch.empty(2 * 2**18), torch.empty(2**18)
        del first
        return second, torch.empty(2**18)

    assert cost.peak_memory(call, torch.device("cpu")) == 3 * 2**20


@pytest.mark.parametrize("name", [*files.problems(), files.OF_A_RUN])
def test_shipped_problems_compose(name):
    diagnosis = files.read(name, {"draws": "3"})
    config = subject.configured(diagnosis, [])
    options = files.candidates(diagnosis, [], config)
    assert diagnosis.draws == 3
    assert len(options) == len(diagnosis.estimators)
    assert not any("," in label for label in diagnosis.estimators), "estimators= splits there"


@pytest.mark.slow
def test_command_writes_all_files(metalearn, data_dir, tmp_path):
    code, out, err = metalearn(
        "diagnose", "hypergradient", "problem=learning_rates", f"data_dir={data_dir}", "task=two_moons",
        "network.hidden=[4]", "method.horizon=3", "warmup=0", "draws=2", "repeats=1", "situations=1",
        "estimators=unrolled,truncated 5,finite_difference,evolution", "--output", "there",
    )  # fmt: skip
    assert code == 0, err
    folder = tmp_path / "there"
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".md", ".json", ".svg", ".png"}
    rows = {row["estimator"]: row for row in csv.DictReader((folder / "diagnose.csv").open())}
    assert float(rows["unrolled"]["cosine"]) == pytest.approx(1)
    assert float(rows["unrolled"]["bias"]) == 0
    assert "exactly 1" in rows["finite_difference"]["reason"]
    assert int(rows["evolution"]["draws"]) == 2
    assert "window 5 is longer" in out
    record = json.loads((folder / "diagnose.json").read_text())
    assert {"seed", "hardware", "versions", "git", "task", "config"} <= set(record)


@pytest.mark.slow
def test_a_checkpoint_gives_what_memory_gives(tmp_path):
    config = compose([*MOONS, "train.steps=2", f"run_dir={tmp_path / 'run'}"])
    run = run_one(config, ["test"])
    assert run is not None
    diagnosis = files.read(files.OF_A_RUN, {"situations": "1", "draws": "2", "repeats": "1"})
    stored = subject.restored(run, subject.stored(run, ["train.steps=4"]), diagnosis)
    method = subject.bilevel(build(config))
    for index in range(2):
        method.step(index)
    memory = subject.Subject(config, stored.parts, [method.situations(2)], "memory")
    options = files.candidates(diagnosis, ["truncated 1", "evolution"], config)
    rows = [table.measure(state, diagnosis, options) for state in (stored, memory)]
    assert [row.accuracy for row in rows[0]] == [row.accuracy for row in rows[1]]
    assert rows[0][0].accuracy is not None


def _metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left = [{key: value for key, value in line.items() if "diagnose/" not in key} for line in lines]
    return [line for line in left if set(line) != {"step"}]


@pytest.mark.parametrize("estimators", ["first_order,evolution"])
def test_a_probe_leaves_the_run_bit_equal(tmp_path, estimators):
    plain = run_one(compose([*MOONS, f"run_dir={tmp_path / 'plain'}"]), ["test"])
    live = ["train.diagnose_every=2", f"train.diagnose=[{estimators}]", f"run_dir={tmp_path / 'live'}"]
    probed = run_one(compose([*MOONS, *live]), ["test"])
    assert plain is not None
    assert probed is not None
    assert _metrics(plain) == _metrics(probed)
    text = (probed / "metrics.jsonl").read_text()
    assert all(f"diagnose/{name}/cosine" in text for name in estimators.split(","))


@pytest.mark.slow
def test_a_probe_leaves_networks_and_generators_alone(data_dir):
    darts = ["recipe=quickstart/darts_digits_search", "network.channels=2", "network.nodes=2", "task.batch=4"]
    live = ["train.diagnose_every=1", "train.diagnose=[first_order,finite_difference]", "machine=cpu"]
    config = compose([*darts, *live, f"data_dir={data_dir}"])
    parts = build(config)
    probe, network = Probe(config, parts), parts.method.network  # type: ignore[attr-defined]
    buffers = {key: leaf.clone() for key, leaf in network.named_buffers()}
    before = torch.get_rng_state(), network.training
    found = probe(parts.method, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == network.training
    assert all(torch.equal(leaf, buffers[key]) for key, leaf in network.named_buffers())
    assert 0.5 < float(found["diagnose/finite_difference/cosine"]) <= 1


def test_a_probe_refuses_what_it_cannot_compare():
    config = compose([*MOONS, "train.diagnose_every=1", "train.diagnose=[unroled]"])
    with pytest.raises(UserError, match=r"'unroled'; choose some of: unrolled"):
        Probe(config, build(config))
    config = compose(["task=two_moons", "machine=cpu", "train.diagnose_every=1"])
    with pytest.raises(UserError, match="Supervised has no hypergradient"):
        Probe(config, build(config))


def test_windows_without_an_outer_loss_are_refused():
    from metalearn.diagnose.candidate import Candidate

    candidate = Candidate(SimpleNamespace(), SimpleNamespace(), windows=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="windows: got 2"):
        candidate._parts(Segment([None] * 4, {4: None}))  # type: ignore[list-item]


@pytest.mark.slow
def test_implicit_is_near_exact_where_the_run_has_converged(metalearn, data_dir, tmp_path):
    code, _, err = metalearn("diagnose", "hypergradient", "problem=weight_decays_converged",
                             f"data_dir={data_dir}", "estimators=conjugate_gradient 20",
                             "--output", "there")  # fmt: skip
    assert code == 0, err
    [row] = csv.DictReader((tmp_path / "there/diagnose.csv").open())
    assert float(row["bias"]) < 0.02


@pytest.mark.slow
def test_a_shipped_problem(metalearn, data_dir, tmp_path):
    code, _, err = metalearn("diagnose", "hypergradient", "problem=darts_digits", f"data_dir={data_dir}",
                             "estimators=first_order,finite_difference 0.1", "--output", "there")  # fmt: skip
    assert code == 0, err
    rows = {row["estimator"]: row for row in csv.DictReader((tmp_path / "there/diagnose.csv").open())}
    assert float(rows["finite_difference 0.1"]["cosine"]) > float(rows["first_order"]["cosine"])
