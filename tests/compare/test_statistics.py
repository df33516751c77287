"""Means, intervals and tests, held to scipy; groups, labels, metrics, baselines."""

import itertools

import numpy
import pytest
from scipy import stats

from metalearn.compare import build, pairs
from metalearn.compare.entry import Told, entry
from metalearn.compare.estimates import band, estimate
from metalearn.compare.grouping import short
from metalearn.compare.model import Series
from metalearn.registry import UserError

OURS = {0: 2.0, 1: 2.6, 2: 2.3, 3: 2.9, 4: 2.2}
THEIRS = {0: 3.1, 1: 2.9, 2: 3.6, 3: 3.3, 4: 2.7}


def made(seed, error, *, rate=0.1, state="finished", place=None, curve=(9.0, 5.0), config=None):
    """An entry whose valid/error goes along `curve` to `error`."""
    options = {
        "seed": seed,
        "name": "toy",
        "task": {"name": "digits"},
        "method": {"name": "supervised", "learning_rate": rate},
        "train": {"monitor": "valid/error", "goal": "min"},
    }
    values = numpy.array([*curve, error])
    series = {"valid/error": Series(10 * numpy.arange(1, len(values) + 1), values)}
    place = place or f"runs/toy/{rate}_{seed}"
    return entry(Told(place, "local", options | (config or {}), series, state, 30))


def test_interval_is_students():
    found = estimate(OURS)
    low, high = stats.t.interval(0.95, 4, numpy.mean(list(OURS.values())), stats.sem(list(OURS.values())))

    assert found.mean - found.half_width == pytest.approx(low)
    assert found.mean + found.half_width == pytest.approx(high)
    assert found.deviation == pytest.approx(numpy.std(list(OURS.values()), ddof=1))
    assert estimate({0: 1.5})[1:3] == (None, None)
    assert estimate({0: 1.5, 1: float("inf")})[1:3] == (None, None)


def test_pairs_are_students_and_strangers_are_welchs():
    ours, theirs = list(OURS.values()), list(THEIRS.values())

    paired = pairs.tested(estimate(OURS), estimate(THEIRS), 1, True)
    assert paired.probability == pytest.approx(stats.ttest_rel(theirs, ours).pvalue)
    assert paired.basis == "paired, 5 seeds"
    low, high = stats.ttest_rel(theirs, ours).confidence_interval()
    assert (paired.difference - paired.half_width, paired.difference + paired.half_width) == (
        pytest.approx(low),
        pytest.approx(high),
    )

    strangers = pairs.tested(estimate(OURS), estimate(THEIRS), -1, False)
    assert strangers.probability == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert strangers.difference == pytest.approx(numpy.mean(ours) - numpy.mean(theirs))
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert 2 * strangers.half_width == pytest.approx(interval.high - interval.low)


def test_too_few_or_no_numbers_are_no_test():
    two = estimate({0: 1.0, 1: 2.0})
    assert pairs.tested(two, estimate(OURS), 1, True) is None
    assert pairs.tested(estimate(OURS | {9: float("nan")}), estimate(THEIRS), 1, True) is None
    other_seeds = estimate({seed + 4: value for seed, value in THEIRS.items()})  # one is shared
    assert pairs.tested(estimate(OURS), other_seeds, 1, True).basis == "Welch, 5 and 5 runs"


def test_holm_is_the_closed_test_of_bonferroni():
    """The adjusted p of a hypothesis is the greatest Bonferroni p of all intersections that hold it."""
    raw = [0.01, 0.04, 0.03, 0.005, 0.6]
    sets = [subset for size in range(1, 6) for subset in itertools.combinations(range(5), size)]
    expected = [
        max(min(1.0, len(one) * min(raw[k] for k in one)) for one in sets if place in one)
        for place in range(5)
    ]
    assert pairs.holm(raw) == pytest.approx(expected)
    assert pairs.holm([]) == []


def test_verdicts_follow_the_corrected_p():
    """p = 0.03 alone is clear, as one of two it is not."""
    shifts = {0.1: (0.0, 0.0, 0.0), 0.2: (0.2, 0.33, 0.2), 0.3: (0.2, 0.2, 0.33)}
    ours = (2.0, 2.3, 2.1)
    entries = [
        made(seed, value + shifts[rate][seed], rate=rate)
        for rate in shifts
        for seed, value in enumerate(ours)
    ]
    raw = stats.ttest_rel([2.2, 2.63, 2.3], ours).pvalue
    assert 0.025 < raw < 0.05

    (alone,) = (pair for pair in build(entries[:6]).pairs if pair.kind == "final")
    held, _ = (pair for pair in build(entries).pairs if pair.kind == "final")

    assert (alone.probability, held.probability) == (pytest.approx(raw), pytest.approx(2 * raw))
    assert (alone.claim.verdict, held.claim.verdict) == ("better", "unclear")
    assert alone.claim.statement.startswith(
        "valid/error: learning_rate=0.1 beats learning_rate=0.2 by 0.24 ±"
    )
    assert "no clear difference" in held.claim.statement
    assert "after Holm over 2" in held.claim.statement


def test_bands_are_at_common_steps():
    long = made(0, 2.0, curve=(9.0, 5.0, 4.0))
    short_ = made(1, 3.0, curve=(8.0,))
    found = band([long, short_], "valid/error")

    assert found.steps.tolist() == [10, 20]
    assert found.mean.tolist() == [8.5, 4.0]
    low, high = stats.t.interval(0.95, 1, 8.5, stats.sem([9.0, 8.0]))
    assert (found.low[0], found.high[0]) == (pytest.approx(low), pytest.approx(high))
    alone = band([long], "valid/error")
    assert alone.low.tolist() == alone.mean.tolist() == [9.0, 5.0, 4.0, 2.0]


def test_final_and_best_are_of_all_points_and_the_goal_is_the_runs():
    values = numpy.random.default_rng(0).normal(size=20_000)
    told = Told(
        "a",
        "local",
        {"train": {"monitor": "valid/accuracy", "goal": "max"}},
        {name: Series(numpy.arange(20_000), values) for name in ("train/accuracy", "train/loss")},
        "finished",
        1,
    )
    found = entry(told)

    assert found.best == {"train/accuracy": values.max(), "train/loss": values.min()}
    assert found.final == {"train/accuracy": values[-1], "train/loss": values[-1]}
    assert len(found.series["train/loss"].steps) < 600


def test_runs_that_did_not_finish_count_only_where_none_did():
    entries = [
        made(0, 2.0),
        made(1, 3.0),
        made(2, 90.0, state="crashed"),
        made(0, 4.0, rate=0.2, state="running"),
    ]
    first, second = build(entries).groups

    assert first.final["valid/error"].values == {0: 2.0, 1: 3.0}
    assert second.final["valid/error"].mean == 4.0
    notices = "\n".join(build(entries).notices)
    assert "0.1_2 is crashed at step 30" in notices
    assert "1 of 4 runs count in no mean" in notices


def test_runs_that_did_not_finish_are_no_test():
    """Means of unfinished runs are shown where there are no others; nothing is claimed of them."""
    entries = [
        made(seed, 1 + rate * (9 + seed), rate=rate, state=state)
        for rate, state in ((0.1, "finished"), (0.2, "running"))
        for seed in range(3)
    ]
    (found,) = (pair for pair in build(entries).pairs if pair.kind == "final")
    assert (found.claim.verdict, found.probability) == ("none", None)
    assert "a test takes 3 finished runs of both" in found.claim.statement


def test_a_path_with_the_runs_own_seed_is_any_seeds():
    entries = [
        made(
            seed, 2.0, config={"network": {"name": "cell", "genotype": f"/x/search_seed{seed}/genotype.json"}}
        )
        for seed in (1, 11, 2)
    ]
    other = made(3, 2.0, config={"network": {"name": "cell", "genotype": "/x/search_seed1/genotype.json"}})

    assert [len(group.entries) for group in build([*entries, other]).groups] == [3, 1]


def test_other_tasks_are_no_test():
    other = {"task": {"name": "mnist"}}
    entries = [
        made(seed, 1 + rate * seed, rate=rate, config=config)
        for rate, config in ((0.1, None), (0.2, None), (0.3, other))
        for seed in range(3)
    ]
    found = build(entries)
    assert {pair.second for pair in found.pairs} == {found.groups[1].label}
    assert "1 of 3 configurations learn another task (mnist) than the baseline" in found.notices[-1]
    assert build(entries[:6]).notices == ()


def test_labels_and_keys():
    assert [group.label for group in build([made(0, 1.0), made(0, 1.0, rate=0.2)]).groups] == [
        "learning_rate=0.1", "learning_rate=0.2",
    ]  # fmt: skip
    folders = [
        made(0, 1.0, place="/p/mnist/cpu/darts_seed0"),
        made(0, 1.0, rate=0.2, place="/p/ptb/cpu/darts_seed0"),
    ]
    assert [group.label for group in build(folders).groups] == ["mnist/cpu/darts", "ptb/cpu/darts"]
    deeper = made(0, 1.0, rate=0.3, place="/p/pens/darts_seed0")
    assert [group.label for group in build([*folders, deeper]).groups][1:] == ["ptb/cpu/darts", "pens/darts"]
    lstm = {"method": {"name": "lstm", "hidden": 20}}
    named = build([made(0, 1.0), made(1, 1.0, rate=0.2), made(0, 1.0, config=lstm)])
    assert named.keys == ("method.name", "method.learning_rate")  # hidden follows from the name
    assert short(["method.name", "a.rate", "b.rate", "train.steps"]) == {
        "method.name": "method", "a.rate": "a.rate", "b.rate": "b.rate", "train.steps": "steps",
    }  # fmt: skip


def test_mistakes():
    entries = [made(seed, seed, rate=rate) for rate in (0.1, 0.2, 0.25) for seed in range(3)]
    with pytest.raises(UserError, match="no run has 'valid/eror'; choose of: valid/error"):
        build(entries, ["valid/eror"])
    with pytest.raises(UserError, match="is part of several configurations"):
        build(entries, baseline="0.2")
    with pytest.raises(UserError, match="'sgd' is no configuration; choose one of: learning_rate"):
        build(entries, baseline="sgd")
    assert {pair.first for pair in build(entries, baseline="0.25").pairs} == {"learning_rate=0.25"}
    assert {pair.first for pair in build(entries, baseline="learning_rate=0.2").pairs} == {
        "learning_rate=0.2"
    }
    stranger = entry(
        Told("b", "local", {"seed": 0}, {"score": Series(numpy.arange(3), numpy.ones(3))}, "finished", 3)
    )
    with pytest.raises(UserError, match="nothing in common"):
        build([made(0, 1.0), stranger])
