"""Mixtures: draws as functions of their key, evaluation, meta-training and its resume, mistakes."""

import dataclasses
import functools
import io
import json
from collections import Counter

import pytest
import torch
import yaml

from metalearn import cli
from metalearn.build import build
from metalearn.compose import CONF, compose, options
from metalearn.learned_optimizers.mixture import Mixture
from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.learned_optimizers.rollout import summary
from metalearn.registry import UserError

cli.register_all()
SMALL = ["method.horizon=4", "method.unroll=2", "method.valid_problems=6", "method.test_problems=3"]
LEARNED = ["method=learned_optimizer", "hypergradient=unrolled", "rule=lstm", "rule.hidden=4", "machine=cpu"]
NEEDS_DATA = ["images"]
READY = [name for name in options("mixture") if name != "none"]


@functools.cache
def _config(mixture, *overrides):
    return compose([f"mixture={mixture}", *LEARNED, *SMALL, *overrides])


def _method(mixture, *overrides):
    return build(_config(mixture, *overrides)).method


@pytest.fixture(scope="module")
def built():
    """built(mixture): its method, made once; tests must not step it."""
    known = {}

    def get(name):
        if name not in known:
            known[name] = _method(name)
        return known[name]

    return get


def _summary(optimizee: Optimizee):
    """All that was drawn, as far as it shows."""
    batch = optimizee.batches("train", (0,), 0, 1)[0]
    return (
        optimizee.task.spec.name,
        optimizee.layout.shapes,
        str(optimizee.network),
        tuple(batch.x.shape),
        batch.x.double().sum().item(),
        optimizee.start("train", (0,)).sum().item(),
    )


def _finite(optimizee):
    losses, grads = optimizee.losses_and_gradients(
        optimizee.start("train", (3, 4)), optimizee.batches("train", (3, 4), 0, 1)[0]
    )
    assert losses.isfinite().all()
    assert grads.isfinite().all()
    assert grads.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_every_ready_mixture_gives_problems(name, request):
    data = [f"data_dir={request.getfixturevalue('data_dir')}"] if name in NEEDS_DATA else ["data_dir=none"]
    method = _method(name, "download=false", *data)
    for run in range(10):
        _finite(method.family.draw("train", run))
    assert method.evaluate("valid")["valid/final_loss"].isfinite()
    assert method.step(0)["train/meta_loss"].isfinite()


@pytest.mark.slow
def test_a_draw_is_a_function_of_seed_split_and_number(built):
    """Whatever was drawn before; another of each gives another problem."""
    family, again = built("functions").family, _method("functions").family
    found = {run: _summary(family.draw("train", run)) for run in range(8)}
    assert {run: _summary(again.draw("train", run)) for run in reversed(range(8))} == found
    assert len({str(drawn) for drawn in found.values()}) == 8
    other = _method("functions", "seed=1").family
    assert _summary(other.draw("train", 0))[1:] != found[0][1:]
    assert _summary(family.draw("valid", 0))[1:] != found[0][1:]
    assert family.draw("train", 3) is family.draw("train", 3)


@pytest.mark.slow
def test_members_come_by_their_weights():
    method = _method("mixture", "mixture.members.networks.weight=3")
    counted = Counter(method.family.draw("train", run).task.spec.name for run in range(200))
    assert 130 <= counted["digits"] <= 170


@pytest.mark.slow
def test_drawn_options_are_in_their_ranges_and_differ(built):
    family = built("mlps").family
    drawn = [family.draw("train", run) for run in range(40)]
    sizes = [len(optimizee.batches("train", (0,), 0, 1)[0].y[0]) for optimizee in drawn]
    assert min(sizes) >= 8
    assert max(sizes) <= 128
    assert len(set(sizes)) > 15
    depths = {len(optimizee.layout.shapes) // 2 - 1 for optimizee in drawn}
    assert depths == {1, 2, 3}
    kinds = {str(module) for optimizee in drawn for module in optimizee.network.modules()}
    assert {"Sigmoid()", "Tanh()", "ReLU()"} <= kinds
    deviations = [optimizee.options.deviation for optimizee in drawn]
    assert 0.01 <= min(deviations) < 0.05 < 0.15 < max(deviations) <= 1.0
    start = drawn[0].start("train", range(20))
    assert start.std().item() == pytest.approx(deviations[0], rel=0.05)
    assert len({id(optimizee.task.task) for optimizee in drawn}) == 2  # of two members, read once each


@pytest.mark.slow
def test_fewer_examples_are_the_first_ones(built):
    family = built("mlps").family
    for run in range(3):
        optimizee = family.draw("train", run)
        whole, part = optimizee.task.task.batch("train", 7), optimizee.task.batch("train", 7)
        assert torch.equal(part.x, whole.x[: len(part.x)])
        assert torch.equal(part.y, whole.y[: len(part.y)])


@pytest.mark.slow
def test_evaluation_takes_fixed_fresh_problems(built):
    """As many as asked for, by `together`; none shares its start or data with another."""
    family = built("mixture").family
    valid, test = family.evaluation("valid"), family.evaluation("test")
    assert [count for _, count in valid] == [4, 2]
    assert [count for _, count in test] == [3]
    again = _method("mixture").family.evaluation("valid")
    for (first, count), (second, _) in zip(valid, again, strict=True):
        assert torch.equal(first.start("valid", range(count)), second.start("valid", range(count)))
    keys = [optimizee.batches("valid", range(count), 0, 1)[0].key for optimizee, count in valid]
    problems = {key[place : place + 4] for key in keys for place in range(0, len(key), 4)}
    assert len(problems) == 6
    starts = [optimizee.start("valid", range(count))[:, 0] for optimizee, count in valid]
    assert len(torch.cat(starts).unique()) == sum(map(len, starts))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mixture", *(pytest.param(name, marks=pytest.mark.slow) for name in ("functions", "mlps"))]
)
def test_meta_training_resumes_inside_a_run(name):
    """Runs of two unrolls in two groups, each on a problem of its own; the rule moves."""
    changes = ["method.groups=2", "method.problems=2", "method.valid_problems=2"]
    whole, first, second = (_method(name, *changes) for _ in range(3))
    before = {key: leaf.detach().clone() for key, leaf in whole.meta.items()}
    losses = [whole.step(index) for index in range(6)]
    assert whole.run(0, 0)[0].optimizee is not whole.run(0, 1)[0].optimizee
    for index in range(3):
        first.step(index)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert [second.step(index) for index in range(3, 6)] == losses[3:]
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    assert not any(torch.equal(before[key], leaf) for key, leaf in whole.meta.items() if before[key].any())
    assert second.evaluate("valid") == whole.evaluate("valid")


@pytest.mark.slow
def test_controls_are_given_the_same_problems(built):
    """Their first losses are those of the learned optimizer."""
    learned = built("mixture")
    changes = ["method.optimizers=[adam]", "method.learning_rates=[0.01]", "train.steps=1"]
    controls = build(
        compose(["mixture=mixture", "method=tuned_optimizers", "machine=cpu", SMALL[0], *SMALL[2:], *changes])
    ).method
    controls.step(0)
    learned.evaluate("valid"), controls.evaluate("valid")
    assert torch.equal(learned.curves["valid"][0], controls.curves["valid"]["adam"][0])


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lstm_lm", "rnn_lm"])
def test_character_models_side_by_side_equal_the_loop(network, float64):  # noqa: ARG001
    """vmap over problems of the cells written out, against autograd problem by problem."""
    keeps = ["network.input_keep=1", "network.output_keep=1"]
    keeps += ["network.recurrent_keep=1", "network.layers=2"] if network == "lstm_lm" else []
    text = ["task=python_docs", "task.batch=3", "task.time=6", f"network={network}", "network.units=5"]
    method = build(compose([*LEARNED, *SMALL, *text, *keeps, "method.deviation=0.3"])).method
    optimizee, numbers = method.family.draw("train", 0), (0, 1, 2)
    optimizee.network.double()
    theta, batch = optimizee.start("train", numbers), optimizee.batches("train", numbers, 2, 1)[0]
    losses, grads = optimizee.losses_and_gradients(theta, batch)
    leaf = theta.clone().requires_grad_()
    expected = optimizee.losses(leaf, batch)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), leaf)[0])
    assert grads.norm() > 0.1


def test_dropout_of_a_text_model_is_refused():
    text = ["task=python_docs", "task.batch=2", "task.time=3", "network=lstm_lm", "network.units=4"]
    with pytest.raises(UserError, match=r"turn dropout off .*network.NAME_keep=1"):
        build(compose([*LEARNED, *SMALL, *text]))


def test_a_run_is_told_by_its_mixture(built, tmp_path):
    assert compose(["mixture=broad", *LEARNED]).name == "learned_optimizer_broad"
    assert compose([*LEARNED, "task=mnist"]).name == "learned_optimizer_mnist"
    method = built("mixture")
    spec = method.learns_on
    assert (spec.name, spec.kind) == ("mixture mixture", "mixture")
    assert "digits" in spec.source
    assert "quadratic" in spec.source
    method.artifacts(tmp_path)
    assert json.loads((tmp_path / "optimizer.json").read_text())["task"] == "mixture mixture"


def test_log_ratio_weighs_problems_alike():
    curve = torch.tensor([[1000.0, 1.0, 2.0], [10.0, 0.1, torch.nan]])
    assert summary("test", curve)["test/log_ratio"].item() == pytest.approx(-1.0)


MEMBER = {"weight": 1.0, "overrides": ["task=digits", "network=mlp"], "draw": {}}
MISTAKES = [
    (
        {"overrides": ["task.valid_size=-1"]},
        r"mixture.members.own: task.valid_size: got -1, must be at least 0",
    ),
    ({"weight": 0}, r"mixture.members.own.weight: got 0.0, must be above 0"),
    ({"weight": "much"}, r"mixture.members.own.weight: got 'much', must be a number"),
    ({"weigth": 1}, r"mixture.members.own.weigth: no such option; choose one of: weight"),
    ({"overrides": ["task=digit"]}, r"mixture.members.own.overrides: .*task/digit"),
    ({"overrides": ["method.horizon=3"]}, r"got 'method.horizon=3', must be of task or network"),
    (
        {"overrides": ["network.hidden=[0]"]},
        r"mixture.members.own: network.hidden: got 0, must be at least 1",
    ),
    (
        {"draw": {"network.hiden": {"choice": [1]}}},
        r"own.draw.network.hiden: no such .* one of: network.hidden",
    ),
    ({"draw": {"network.hidden": 3}}, r"own.draw.network.hidden: got 3, must be a distribution"),
    ({"draw": {"network.hidden": {"choice": [1]}}}, r"own: network.hidden: got 1, must be a list"),
    ({"draw": {"network.activation": {"choice": ["relu", "gelu"]}}}, r"own: network.activation: got 'gelu'"),
    ({"draw": {"batch": {"uniform": [8, 65]}}}, r"own: batch: got 65, .* from 1 to task.batch, 64"),
    ({"draw": {"task.batch": {"uniform": [8, 64]}}}, r"own.draw: .* digits cannot be drawn"),
]


def _with(built, members):
    """The mixture of other members, with the rest of what `mixture` was built from."""
    family = built("mixture").family
    return Mixture(dataclasses.replace(family.options, members=members), family.optimizee, family.context)


@pytest.mark.parametrize(
    ("changes", "message"),
    [*MISTAKES[:2], *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in MISTAKES[2:])],
)
def test_mistakes_name_member_and_key(built, changes, message):
    with pytest.raises(UserError, match=message):
        _with(built, {"own": {**MEMBER, **changes}})


def test_what_is_no_member_is_refused(built):
    with pytest.raises(
        UserError, match=r"mixture.members.own: got 3, must be a group with weight, overrides"
    ):
        _with(built, {"own": 3})
    with pytest.raises(UserError, match=r"mixture.members: got none; name one or more"):
        _with(built, {})


def test_a_member_without_draws_is_always_itself(built):
    family = _with(built, {"own": MEMBER})
    assert [len(family.draw("train", run).layout.shapes) for run in range(2)] == [4, 4]
    assert family.draw("train", 0).options == family.optimizee


@pytest.mark.slow
def test_members_taken_in_from_other_mixtures_are_all_there():
    """And `broad` gives all four kinds the same weight."""
    members = compose(["mixture=broad"]).mixture.members
    parts = {
        name: list(compose([f"mixture={name}"]).mixture.members)
        for name in ("mlps", "convnets", "functions", "text")
    }
    assert sorted(members) == sorted(name for names in parts.values() for name in names)
    assert {sum(members[name]["weight"] for name in names) for names in parts.values()} == {5.0}
    assert yaml.safe_load((CONF / "mixture/broad.yaml").read_text())["title"] == "broad"


@pytest.mark.parametrize("given", ["rule=adam", "mixture=mixture"])
def test_methods_that_use_no_rule_or_mixture_say_so(given):
    group = given.partition("=")[0]
    config = compose([given, "task=two_moons", "network=mlp", "machine=cpu"])
    with pytest.raises(UserError, match=f"supervised uses no {group}, and {given} .*{group}=none"):
        build(config)
