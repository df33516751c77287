"""How long runs are and where groups stand."""

import dataclasses
import itertools
import math

import pytest

from metalearn.learned_optimizers.config import HorizonOptions
from metalearn.learned_optimizers.schedule import Place, Schedule
from metalearn.registry import UserError


def _schedule(kit, groups=1, unroll=10, horizon=100, **changes):
    options = dataclasses.replace(HorizonOptions("fixed", 10, "none", 10, 90, stagger=False), **changes)
    return Schedule(kit.learned(groups=groups, unroll=unroll, horizon=horizon, horizons=options), seed=0)


def _parts(schedule, steps, group=0):
    """The lengths of the runs that begin in the first steps."""
    places = [schedule.place(index, group) for index in range(steps)]
    return [place.parts for place in places if place.part == 0]


def test_fixed_runs_follow_each_other(kit):
    schedule = _schedule(kit, groups=3)
    for index in range(35):
        assert all(schedule.place(index, group) == Place(*divmod(index, 10), 10) for group in range(3))


VARIED = {"draw": "log_uniform", "curriculum": "geometric", "stagger": True}


def test_a_place_depends_on_the_step_alone(kit):
    """Asked in any order, by any schedule; runs end where the next begin."""
    asked = _schedule(kit, groups=2, **VARIED)
    forward = [asked.place(index, 1) for index in range(200)]
    assert [asked.place(index, 1) for index in reversed(range(200))] == forward[::-1]
    assert _schedule(kit, groups=2, **VARIED).place(150, 1) == forward[150]
    for before, after in itertools.pairwise(forward):
        ends = before.part + 1 == before.parts
        assert after[:2] == ((before.run + 1, 0) if ends else (before.run, before.part + 1))
        assert ends or after.parts == before.parts
    assert [asked.place(index, 0) for index in range(200)] != forward


@pytest.mark.parametrize("curriculum", ["linear", "geometric"])
def test_a_curriculum_grows_from_first_to_horizon(kit, curriculum):
    """linear: 10 steps after 0, 100 after 90, one more a step; geometric: the root of both half-way."""
    schedule = _schedule(kit, curriculum=curriculum, unroll=1, first=10)
    longest = [schedule.longest(index) for index in range(120)]
    assert (longest[0], longest[90], longest[119]) == (10, 100, 100)
    assert longest == sorted(longest)
    assert longest[45] == (55 if curriculum == "linear" else math.floor(math.sqrt(10 * 100)))
    assert _parts(schedule, 40)[:3] == [longest[0], longest[10], longest[10 + longest[10]]]
    coarse = _schedule(kit, curriculum=curriculum, unroll=10, first=10)
    assert all(coarse.longest(index) == longest[index] // 10 for index in range(120))


def test_log_uniform_lengths(kit):
    """From 10 to 1000 steps: in the mean their logarithms are half-way, within four standard errors."""
    schedule = _schedule(kit, draw="log_uniform", unroll=1, shortest=10, horizon=1000)
    lengths = _parts(schedule, 10_000)
    assert min(lengths) < 15
    assert max(lengths) > 800
    assert all(10 <= length <= 1000 for length in lengths)
    logarithms = [math.log10(length) for length in lengths]
    mean, error = sum(logarithms) / len(lengths), 2 / math.sqrt(12 * len(lengths))
    assert abs(mean - 2) < 4 * error


def test_staggered_groups_start_anew_at_different_steps(kit):
    schedule = _schedule(kit, groups=5, stagger=True)
    starts = [
        {index for index in range(1, 40) if schedule.place(index, group).part == 0} for group in range(5)
    ]
    assert starts == [{10, 20, 30}, {8, 18, 28, 38}, {6, 16, 26, 36}, {4, 14, 24, 34}, {2, 12, 22, 32}]


def test_staggered_groups_stay_so_when_a_curriculum_begins_with_one_unroll(kit):
    schedule = _schedule(kit, groups=5, stagger=True, curriculum="linear", first=10, over=50)
    starts = [
        {index for index in range(70, 120) if schedule.place(index, group).part == 0} for group in range(5)
    ]
    assert all(not one & other for one, other in itertools.combinations(starts, 2))
    assert {len(found) for found in starts} == {5}


def test_lengths_that_do_not_fit_are_refused(kit):
    with pytest.raises(UserError, match=r"horizons.shortest: got 5, must be from method.unroll, 10, to"):
        _schedule(kit, draw="log_uniform", shortest=5)
    with pytest.raises(UserError, match=r"horizons.first: got 200, must be .* method.horizon, 100"):
        _schedule(kit, curriculum="linear", first=200)


def test_runs_of_any_length_learn_what_they_are_given(kit):
    """Problems and batches of a run are those of its number, its points those from its own start."""
    options = HorizonOptions("log_uniform", 3, "none", 3, 4, stagger=True)
    method = kit.learner(kit.Blobs(), groups=2, horizon=12, horizons=options, hidden=2, layers=1)
    for index in range(12):
        for group in range(2):
            place, (run, part) = method.schedule.place(index, group), method.run(index, group)
            assert (part, tuple(run.numbers)) == (place.part, (2 * place.run + group,))
            keys = [batch.key[1] for batch in method.segment(run, part).inner]
            assert keys == [13 * run.numbers[0] + 3 * part + step for step in range(3)]
        method.step(index)


@pytest.mark.parametrize(
    "stop", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_resume_is_bit_exact_under_every_schedule(kit, stop):
    def fresh():
        horizons = HorizonOptions("log_uniform", 2, "linear", 2, 4, stagger=True)
        return kit.learner(kit.Blobs(), groups=2, unroll=2, horizons=horizons, hidden=2, layers=1)

    whole, first, second = fresh(), fresh(), fresh()
    losses = [whole.step(index)["train/meta_loss"].item() for index in range(7)]
    for index in range(stop):
        first.step(index)
    second.load_state_dict(kit.saved(first.state_dict()))
    assert [second.step(index)["train/meta_loss"].item() for index in range(stop, 7)] == losses[stop:]
