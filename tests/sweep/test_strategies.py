"""What each strategy asks for, by functions with a known minimum and the tables of its paper."""

import math
import random

import pytest

from metalearn.registry import UserError
from metalearn.sweep.bayesian import Bayesian
from metalearn.sweep.brackets import Brackets, Rung, halving, hyperband, in_steps
from metalearn.sweep.listed import Listed, draws, grid
from metalearn.sweep.options import BayesianOptions
from metalearn.sweep.space import dimension, parse

PLANE = ["x=interval(-2,3)", "y=tag(log,interval(1e-3,10))", "kind=bad,good"]


def _space(*lines):
    return [dimension(override) for override in parse(lines)]


def _value(point):
    """Least, 0, at x = 1, y = 0.1, kind = good."""
    said = dict(override.split("=", 1) for override in point)
    return (float(said["x"]) - 1) ** 2 + math.log10(float(said["y"]) * 10) ** 2 + (said["kind"] == "bad")


def _run(strategy, value=_value, sign=1):
    told = []
    while (ask := strategy.ask()) is not None:
        told.append((ask.point, value(ask.point)))
        strategy.tell(ask, sign * told[-1][1])
    return told


def _options(strategy, trials, population=8, seed=0, storage="sqlite"):
    common = {"name": None, "params": {}, "seeds": None, "metric": None, "goal": None, "value": "last"}
    own = {"trials": trials, "population": population, "seed": seed, "storage": storage}
    return BayesianOptions(strategy, **common, retries=0, measure=False, **own)


def test_hydras_grammar_means_what_it_says():
    said = {
        "a=1,2": ("1", "2"),
        "a=choice(x,[1,2],'a b')": ("x", "[1,2]", "a\\ b"),
        "a=range(1,9,3)": ("1", "4", "7"),
        "a=range(0.1,0.5,0.1)": ("0.1", "0.2", "0.3", "0.4"),
        "a=sort(3,1,2)": ("1", "2", "3"),
        "task=glob([mnist,digits])": ("digits", "mnist"),
    }
    assert {line: _space(line)[0].values() for line in said} == said
    drawn = [float(o.split("=")[1]) for (o,) in draws(_space("w=tag(log,int(interval(1,1024)))"), 0, 400)]
    assert all(value == int(value) for value in drawn)
    assert (min(drawn), len(set(drawn))) == (1, 400)
    (inner,) = _space("a=tag(int,interval(0.4,3.6))")
    assert {inner.draw(random.Random(number)) for number in range(99)} == {"1", "2", "3"}, (
        "0 and 4 are outside"
    )
    assert sum(value < 32 for value in _log_draws()) == pytest.approx(200, abs=30)  # half of the decades


def _log_draws():
    (rate,) = _space("r=tag(log,interval(1,1024))")
    return [float(rate.draw(random.Random(number))) for number in range(400)]


@pytest.mark.parametrize("line", ["a=interval(2,1)", "a=tag(log,interval(0,1))", "a=tag(x,interval(0,1))"])
def test_an_interval_that_is_none_is_refused(line):
    with pytest.raises(UserError, match="a="):
        _space(line)


def test_a_grid_has_every_combination_the_last_key_fastest():
    assert grid(_space("a=1,2", "b=range(2)")) == [
        ("a=1", "b=0"), ("a=1", "b=1"), ("a=2", "b=0"), ("a=2", "b=1"),
    ]  # fmt: skip
    assert grid([]) == [()]
    with pytest.raises(UserError, match="choose sweep=random"):
        grid(_space("a=interval(0,1)"))


def test_random_points_are_the_same_however_many_are_asked_for_and_none_comes_twice():
    space = _space(*PLANE)
    assert draws(space, 7, 5) == draws(space, 7, 30)[:5]
    assert draws(space, 7, 5) != draws(space, 8, 5)
    everything = draws(_space("a=1,2,3", "b=x,y"), 0, 50)
    assert sorted(everything) == sorted(grid(_space("a=1,2,3", "b=x,y")))
    assert min(value for _, value in _run(Listed(draws(space, 0, 200), ""))) < 0.05


@pytest.mark.parametrize(
    ("strategy", "trials", "goal"),
    [("tpe", 60, "min"), ("tpe", 60, "max"), pytest.param("gp", 16, "min", marks=pytest.mark.slow)],
)
def test_a_model_of_the_values_finds_what_chance_does_not(tmp_path, strategy, trials, goal):
    model = Bayesian(_space(*PLANE), _options(strategy, trials, seed=1), goal, tmp_path, reading=True)
    told = _run(model, sign=1 if goal == "min" else -1)
    at_random = _run(Listed(draws(_space(*PLANE), 1, 60), ""))
    assert len(told) == trials
    assert min(value for _, value in told) < min(value for _, value in at_random) / 3


@pytest.mark.parametrize("storage", [pytest.param("sqlite", marks=pytest.mark.slow), "journal"])
def test_a_study_goes_on_in_the_next_launch_as_if_it_never_broke(tmp_path, storage):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    options = _options("tpe", 7, population=4, storage=storage)
    expected = _run(Bayesian(_space(*PLANE), options, "min", whole))

    told = []
    for launched in (2, 5, 7):  # each breaks off with one trial asked for, not told; the last one ends
        strategy = Bayesian(_space(*PLANE), options, "min", broken)
        told = []
        while (ask := strategy.ask()) is not None:
            told.append((ask.point, _value(ask.point)))
            if len(told) > launched:
                break
            strategy.tell(ask, told[-1][1])
    assert told == expected
    assert Bayesian(_space(*PLANE), options, "min", broken).total == 7


def test_a_diverged_trial_is_told_and_a_failed_one_stays_open(tmp_path):
    options = _options("tpe", 3, population=1, storage="journal")
    strategy = Bayesian(_space(*PLANE), options, "min", tmp_path)
    for value in (math.inf, None, 1.0):
        strategy.tell(strategy.ask(), value)
    assert strategy.ask() is None
    again = Bayesian(_space(*PLANE), options, "min", tmp_path)
    assert again.plan()[0].startswith("tpe: 3 points, 2 of them done")
    assert [again.ask().number for _ in range(3)] == [0, 1, 2]
    assert again.ask() is None


TABLE = [  # Li et al. 2018, algorithm 1 at R = 81, eta = 3: n_i, r_i of the brackets s = 4 ... 0
    [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
    [(34, 3), (11, 9), (3, 27), (1, 81)],
    [(15, 9), (5, 27), (1, 81)],
    [(8, 27), (2, 81)],
    [(5, 81)],
]


def test_hyperbands_budgets_are_the_papers():
    assert hyperband(81, 3) == TABLE
    assert [bracket[0].points for bracket in hyperband(81, 3, population=162)] == [162, 68, 30, 16, 10]
    assert hyperband(27, 3, population=29)[0][0].points == 29, (
        "29 / 27 * 27 is more than 29 in floating point"
    )
    with pytest.raises(UserError, match="give at least 81"):
        hyperband(81, 3, population=27)


def test_rungs_are_where_the_metric_is_measured():
    assert in_steps(halving(9, 3, 3, 100), 100, 10) == [(9, 10), (3, 30), (1, 100)]
    with pytest.raises(UserError, match="rungs at steps 50, 50, 100 are none"):
        in_steps(halving(9, 3, 3, 100), 100, 50)
    with pytest.raises(UserError, match="give at least 9"):
        halving(5, 3, 3, 100)


def test_only_the_best_of_a_rung_go_on():
    values = {number: abs(number - 5) for number in range(9)}
    rungs = [Rung(9, 1), Rung(3, 3), Rung(1, 9)]
    brackets = Brackets([rungs], [(f"a={number}",) for number in range(9)], "min")
    asked = []
    while (ask := brackets.ask()) is not None:
        asked.append((ask.number, ask.until))
        brackets.tell(ask, math.inf if ask.number == 5 else None if ask.number == 4 else values[ask.number])
    assert asked == [*((n, 1) for n in range(9)), (6, 3), (3, 3), (7, 3), (6, None)]
    assert brackets.steps(9) == 9 * 1 + 3 * 2 + 1 * 6


def test_a_rung_stays_empty_rather_than_take_what_diverged_or_failed():
    brackets = Brackets([[Rung(4, 1), Rung(2, 2)]], [(f"a={number}",) for number in range(4)], "max")
    for value in (-math.inf, None, 1.0, -math.inf):
        brackets.tell(brackets.ask(), value)
    assert brackets.ask() == (2, ("a=2",), None)
    assert brackets.ask() is None


def test_a_rung_waits_for_all_of_the_one_before():
    brackets = Brackets([[Rung(2, 1), Rung(1, 2)]], [("a=0",), ("a=1",)], "max")
    first, second = brackets.ask(), brackets.ask()
    assert brackets.ask() is None
    brackets.tell(second, 2.0)
    assert brackets.ask() is None
    brackets.tell(first, 1.0)
    assert brackets.ask() == (1, ("a=1",), None)
