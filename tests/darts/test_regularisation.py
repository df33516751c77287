"""Schedules of drop path and weight decay, and that the real and the unrolled step follow them."""

import dataclasses

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.regularisation import Regularisation
from metalearn.darts.search import Darts
from metalearn.hypergradient.config import FirstOrderOptions
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.method import Context
from metalearn.registry import UserError
from metalearn.tree import tree_map


@pytest.fixture(scope="module")
def options():
    return compose(["method=darts", "network=darts_supernet", "task=digits"]).method


@pytest.fixture
def regularised(options):
    """Options with another regularisation."""

    def change(weight_decay=options.weight_decay, **changes):
        regularisation = dataclasses.replace(options.regularisation, **changes)
        return dataclasses.replace(options, regularisation=regularisation, weight_decay=weight_decay)

    return change


@pytest.fixture
def search(images, tiny_supernet, machine):
    def build(options):
        first = FirstOrder(FirstOrderOptions("first_order"))
        network = lambda: tiny_supernet(torch.float32)  # noqa: E731
        return Darts(options, Context(images(torch.float32), network, first, machine, 0, 10))

    return build


def test_schedules(regularised):
    plain = Regularisation(regularised(weight_decay=0.1))
    assert [plain.weight_decay(0.5), plain.drop_path(0.5), plain.can_rise()] == [0.1, 0.0, False]
    moving = regularised(weight_decay=0.1, drop_path=0.4, final_weight_decay=0.3)
    moving = dataclasses.replace(
        moving, regularisation=dataclasses.replace(moving.regularisation, weight_decay="linear")
    )
    schedule = Regularisation(moving)
    found = [(schedule.drop_path(p), schedule.weight_decay(p)) for p in (0.0, 0.5, 1.0)]
    assert found == [pytest.approx(pair) for pair in [(0.0, 0.1), (0.2, 0.2), (0.4, 0.3)]]


def adaptive(regularised, start, **changes):
    options = regularised(weight_decay=start, **changes)
    return dataclasses.replace(
        options, regularisation=dataclasses.replace(options.regularisation, weight_decay="adaptive")
    )


def test_adaptive_weight_decay_grows_up_to_its_largest(regularised):
    schedule = Regularisation(adaptive(regularised, 0.001, factor=3.0, largest_weight_decay=0.005))
    found = []
    for schedule.raised in range(4):
        found.append((schedule.weight_decay(0.5), schedule.can_rise()))
    assert found == [(0.001, True), (pytest.approx(0.003), True), (0.005, False), (0.005, False)]


@pytest.mark.parametrize(
    ("start", "changes", "message"),
    [
        (0.0, {}, "starts above 0"),
        (0.1, {"largest_weight_decay": 0.01}, "at most at method.regularisation.largest_weight_decay=0.01"),
        (0.001, {"factor": 1.0}, "never grows"),
    ],
)
def test_adaptive_weight_decay_that_cannot_grow_is_refused(regularised, start, changes, message):
    with pytest.raises(UserError, match=message):
        Regularisation(adaptive(regularised, start, **changes))


def test_both_steps_follow_the_schedule(search, regularised):
    """At half of the run: the real step by its result, the unrolled one by its update."""
    moving = regularised(weight_decay=0.0, final_weight_decay=2.0, drop_path=0.4)
    changed = dataclasses.replace(moving.regularisation, weight_decay="linear")
    run, plain = search(dataclasses.replace(moving, regularisation=changed)), search(moving)
    ahead = run._problem(5).update(run.alpha, run.inner, tree_map(torch.zeros_like, run.inner.params)).params
    for key, leaf in run.inner.params.items():
        torch.testing.assert_close(ahead[key], leaf - run._learning_rate(5) * 1.0 * leaf)
    before = run.inner.params
    run.step(5)
    plain.step(5)
    assert run.network.drop_path == pytest.approx(0.2)
    for key, leaf in plain.inner.params.items():
        decayed = leaf - run._learning_rate(5) * 1.0 * before[key]
        torch.testing.assert_close(run.inner.params[key], decayed, rtol=1e-4, atol=1e-6)
