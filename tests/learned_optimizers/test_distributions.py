"""The language of random options: ranges, shares, mistakes."""

import math
from collections import Counter
from itertools import cycle

import pytest
import torch

from metalearn.learned_optimizers.distributions import check, draw, flatten
from metalearn.registry import UserError
from metalearn.rng import generator


def _shares(count):
    """`count` numbers, evenly over [0, 1)."""
    numbers = cycle((place + 0.5) / count for place in range(count))
    return lambda: next(numbers)


def _drawn(distribution, count=30000):
    check(distribution, "key")
    share = _shares(count)
    return [draw(distribution, share) for _ in range(count)]


def test_choice_is_even():
    assert Counter(_drawn({"choice": ["relu", None, 3]})) == {"relu": 10000, None: 10000, 3: 10000}


def test_whole_numbers_are_even_and_reach_both_ends():
    assert Counter(_drawn({"uniform": [2, 4]})) == {2: 10000, 3: 10000, 4: 10000}


def test_numbers_are_even():
    drawn = _drawn({"uniform": [-1.0, 3]})
    assert all(type(number) is float for number in drawn)
    assert sum(drawn) / len(drawn) == pytest.approx(1.0)
    assert sum(number < 0 for number in drawn) / len(drawn) == pytest.approx(0.25, abs=1e-3)


def test_log_uniform():
    """As many between 0.01 and 0.1 as between 0.1 and 1; of whole numbers n comes as log((n + 1) / n)."""
    drawn = _drawn({"log_uniform": [0.01, 1.0]})
    assert sum(number < 0.1 for number in drawn) / len(drawn) == pytest.approx(0.5, abs=1e-3)
    counted = Counter(_drawn({"log_uniform": [1, 7]}))
    assert set(counted) == set(range(1, 8))
    for number, count in counted.items():
        expected = math.log((number + 1) / number) / math.log(8)
        assert count / 30000 == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("distribution", "low", "high"),
    [
        ({"log_uniform": [4, 64]}, 4, 64),
        ({"uniform": [0.1, 0.3]}, 0.1, 0.3),
        ({"log_uniform": [0.1, 0.3]}, 0.1, 0.3),
        ({"choice": ["a", "b", "c"]}, "a", "c"),
        ({"list": {"length": {"uniform": [0, 2]}, "of": {"choice": [5, 6]}}}, [], [6, 6]),
        ({"list": {"length": 1, "of": {"uniform": [7, 8]}}}, [7], [8]),
    ],
)
def test_extremes(distribution, low, high):
    check(distribution, "key")
    assert draw(distribution, lambda: 0.0) == low
    highest = draw(distribution, lambda: math.nextafter(1.0, 0.0))
    assert highest == (pytest.approx(high) if isinstance(high, float) else high)
    if isinstance(high, float):
        assert highest <= high


def test_every_entry_of_a_list_is_drawn_anew():
    rng = generator("list")
    hidden = draw(
        {"list": {"length": 5, "of": {"uniform": [0.0, 1.0]}}}, lambda: float(torch.rand((), generator=rng))
    )
    assert len(set(hidden)) == 5


def test_keys_come_dotted_or_nested():
    D = {"choice": [1]}
    assert flatten({"network": {"hidden": D, "kernel": D}, "task.l2": D, "batch": D}) == {
        "network.hidden": D, "network.kernel": D, "task.l2": D, "batch": D,
    }  # fmt: skip


MISTAKES = [
    (3, r"k: got 3, must be a distribution: \{choice: \[a, b\]\}"),
    ({"chioce": [1]}, "must be a distribution"),
    ({"choice": []}, "must be a distribution"),
    ({"choice": [1], "uniform": [1, 2]}, "must be a distribution"),
    ({"uniform": [2, 1]}, "low <= high"),
    ({"uniform": [1]}, "must be a distribution"),
    ({"uniform": [0, math.inf]}, "must be a distribution"),
    ({"uniform": [False, True]}, "must be a distribution"),
    ({"log_uniform": [0, 1]}, "must be a distribution"),
    ({"list": {"length": 2}}, "must be a distribution"),
    ({"list": {"length": {"uniform": [0.5, 2]}, "of": {"choice": [1]}}}, r"k.length: .* whole numbers"),
    ({"list": {"length": -1, "of": {"choice": [1]}}}, r"k.length: got -1, must give whole numbers from 0 up"),
    ({"list": {"length": 2, "of": 7}}, r"k.of: got 7, must be a distribution"),
]


@pytest.mark.parametrize(("distribution", "message"), MISTAKES)
def test_mistakes_are_explained(distribution, message):
    with pytest.raises(UserError, match=message):
        check(distribution, "k")
