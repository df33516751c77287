"""Means, deviations and verdicts, against hand-made answers and scipy's tests."""

import math

import pytest
from scipy import stats

from metalearn.report.claims import against_paper, claim, half_width, published, summary
from metalearn.report.numbers import duration, measured, plain, span

T2 = 4.302653  # Student's t, 2 degrees of freedom, 0.975, from the printed tables
OURS = {0: 2.0, 1: 2.5, 2: 2.2}


def test_summary_by_hand():
    assert summary([1.0, 2.0, 6.0]).mean == 3.0
    assert summary([1.0, 2.0, 6.0]).deviation == pytest.approx(math.sqrt(7))
    assert summary([1.0]) == (1.0, None)


def test_paired_difference_by_hand():
    """Differences 1.0, 0.6, 1.4: mean 1, deviation 0.4."""
    held = claim({"ours": OURS, "theirs": {0: 3.0, 1: 3.1, 2: 3.6}}, "min", "%")

    assert held.difference == pytest.approx(1.0)
    assert held.half_width == pytest.approx(T2 * 0.4 / math.sqrt(3), rel=1e-6)
    assert held.verdict == "better"
    assert held.statement == "ours beats theirs by 1.00 ± 0.99 percentage points (paired, 3 seeds)"


def test_the_interval_is_that_of_the_paired_t_test():
    ours, theirs = [0.3, 0.1, 0.4, 0.15], [0.5, 0.45, 0.38, 0.6]
    expected = stats.ttest_rel(theirs, ours).confidence_interval(0.95)
    differences = [b - a for a, b in zip(ours, theirs, strict=True)]

    held = claim({"a": dict(enumerate(ours)), "b": dict(enumerate(theirs))}, "min", "")

    assert held.difference is not None
    assert held.difference - half_width(differences) == pytest.approx(expected.low)
    assert held.difference + half_width(differences) == pytest.approx(expected.high)
    assert held.verdict == "unclear"


def test_runs_that_are_no_pairs_are_held_by_welch():
    """Against scipy's test of unequal variances; seeds that differ and counts that differ do not matter."""
    ours, theirs = [3.1, 2.7, 2.9], [4.0, 4.4, 3.1, 4.9, 3.6]
    expected = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.95)

    held = claim({"a": dict(enumerate(ours)), "b": dict(enumerate(theirs, 10))}, "min", "", paired=False)

    assert held.difference is not None
    assert held.half_width is not None
    assert held.difference - held.half_width == pytest.approx(expected.low)
    assert held.difference + held.half_width == pytest.approx(expected.high)
    assert (held.verdict, held.seeds) == ("better", (0, 1, 2))
    assert held.statement.endswith("(Welch, 3 and 5 runs)")
    few = claim({"a": {0: 1.0, 1: 2.0}, "b": dict(enumerate(theirs))}, "min", "", paired=False)
    assert few.statement == "no claim: a and b have as few as 2 finished seeds, a claim takes 3"


@pytest.mark.parametrize(
    ("theirs", "goal", "verdict", "words"),
    [
        ({0: 3.0, 1: 3.5, 2: 3.21}, "min", "better",
         "ours beats theirs by 1.003 ± 0.014 bits (paired, 3 seeds)"),
        ({0: 3.0, 1: 3.5, 2: 3.21}, "max", "worse",
         "ours loses to theirs by 1.003 ± 0.014 bits (paired, 3 seeds)"),
        ({0: 3.0, 1: 2.4, 2: 2.3}, "min", "unclear",
         "no clear difference between ours and theirs: ours ahead by 0.3 ± 1.5 bits (paired, 3 seeds)"),
        ({0: 3.0, 1: 2.4, 2: 2.3}, "max", "unclear",
         "no clear difference between ours and theirs: theirs ahead by 0.3 ± 1.5 bits (paired, 3 seeds)"),
        ({0: 3.0, 1: 3.6}, "min", "none",
         "no claim: ours and theirs share 2 finished seeds, a claim takes 3"),
        ({0: 3.0}, "min", "none", "no claim: ours and theirs share 1 finished seed, a claim takes 3"),
        ({5: 3.0, 6: 4.0}, "min", "none",
         "no claim: ours and theirs share 0 finished seeds, a claim takes 3"),
        ({}, "min", "none", "no claim: no finished run of theirs"),
    ],
)  # fmt: skip
def test_statements(theirs, goal, verdict, words):
    held = claim({"ours": OURS, "theirs": theirs}, goal, "bits")

    assert (held.verdict, held.statement) == (verdict, words)


def test_the_best_of_the_others_is_the_one_to_beat():
    contenders = {"ours": OURS, "bad": {0: 9.0, 1: 9.0, 2: 9.1}, "good": {0: 2.0, 1: 2.4, 2: 2.3}, "gone": {}}

    assert "ours and good" in claim(contenders, "min", "").statement
    assert "loses to bad" in claim(contenders, "max", "").statement


@pytest.mark.parametrize(
    ("values", "comparable", "goal", "verdict"),
    [
        ([2.70, 2.80, 2.75], True, "min", "agrees (3 seeds)"),
        ([3.70, 3.72, 3.71], True, "min", "worse by 0.95 (3 seeds)"),
        ([3.70, 3.72, 3.71], True, "max", "better by 0.95 (3 seeds)"),
        ([1.70, 1.72, 1.71], True, "min", "better by 1.05 (3 seeds)"),
        ([2.76], True, "min", "no verdict: 1 seed, two are needed"),
        ([], True, "min", "no verdict: 0 seeds, two are needed"),
        ([1.70, 1.72, 1.71], False, "min", "not comparable with papers"),
    ],
)
def test_verdict_against_a_paper(values, comparable, goal, verdict):
    paper = {"value": 2.76, "spread": 0.09, "unit": "%"}

    assert against_paper(values, paper, comparable, goal) == verdict


def test_a_papers_value_is_as_precise_as_its_spread():
    assert published({"value": 3.0, "spread": 0.14, "unit": "%"}) == "3.00 ± 0.14 %"
    assert published({"value": 55.7, "spread": None, "unit": ""}) == "55.7"


@pytest.mark.parametrize(
    ("mean", "spread", "text"),
    [
        (2.756, 0.0912, "2.756 ± 0.091"), (2.756, None, "2.756"), (12345.6, 123.4, "12,346 ± 123"),
        (2.5, 0.0, "2.5 ± 0"), (1.234e-5, 1.2e-6, "1.23e-05 ± 1.2e-06"), (0.0, 0.31, "0.00 ± 0.31"),
    ],
)  # fmt: skip
def test_numbers_show_two_digits_of_their_spread(mean, spread, text):
    assert measured(mean, spread) == text


def test_plain_numbers_and_times():
    assert [plain(v) for v in (0, 2.76123, 54321.0, 1.2e-5)] == ["0", "2.761", "54,321", "1.200e-05"]
    assert [duration(s) for s in (None, 4.25, 75, 251, 9000)] == [
        "-",
        "4.2 s",
        "75 s",
        "4 min 11 s",
        "2 h 30 min",
    ]
    assert [span([]), span([1930618] * 2), span([1, 2000])] == ["-", "1,930,618", "1 to 2,000"]
