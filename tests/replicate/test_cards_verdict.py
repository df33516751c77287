"""What figures say of a published row, held to scipy."""

import numpy as np
import pytest
from scipy import stats

from metalearn.replicate.cards.verdict import judge


def test_rows_without_runs(make_entry, make_card):
    cited = judge(make_entry(plan=None, contender=None, cited="others"), {})
    assert (cited.word, cited.value.statement) == ("cited", "cited: others")
    assert judge(make_entry(), {}).word == "not run"
    assert judge(make_entry(), {"paper": make_card(theirs=[1, 2, 3])}).word == "not run"
    assert judge(make_entry(), {"smoke": make_card("smoke", ours=[5, 5, 5])}).word == "not run", (
        "smoke shows nothing"
    )


def test_a_value_is_reproduced_where_scipys_interval_meets_it(make_entry, make_card):
    found = set()
    for trial in range(60):
        draws, count = np.random.default_rng(trial), 3 + trial % 4
        values = (5 + draws.normal(size=count)).tolist()
        target, spread = float(5 + draws.normal()), [None, 0.0, 0.3][trial % 3]
        low, high = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
        meets = high >= target - (spread or 0) and low <= target + (spread or 0)
        beyond = "better than published" if np.mean(values) < target else "missed"
        verdict = judge(make_entry(target, spread), {"paper": make_card(ours=values)}).value
        assert verdict.word.partition(" by")[0] == ("reproduced" if meets else beyond)
        assert f"({count} seeds)" in verdict.statement
        found.add(verdict.word.partition(" by")[0])
    assert len(found) == 3


def test_the_words_of_a_value(make_entry, make_card):
    near, far = {"paper": make_card(ours=[5.0, 5.1, 5.2])}, {"paper": make_card(ours=[6.0, 6.1, 6.2])}
    half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    said = judge(make_entry(5.0, 0.05), near).value.statement
    assert said == (
        "reproduced: our mean with its 95 % t-interval, 5.10 ± 0.25 % (3 seeds), meets 5.00 ± 0.05 %; "
        f"with 95 % confidence the two differ by at most {0.1 + half:.4g}"
    )
    assert judge(make_entry(5.0, 0.05), far).word == "missed by 1.1"
    assert judge(make_entry(5.0, goal="max"), far).word == "better than published by 1.1"
    assert judge(make_entry(5.0, reading=0.2), far).word == "reproduced", "a reading is as exact as it says"
    assert "5 ± 20 % (read)" in judge(make_entry(5.0, reading=0.2), far).value.statement
    assert judge(make_entry(None), far).word == "no number published"


def test_where_a_value_cannot_be_said(make_entry, make_card):
    two = {"paper": make_card(ours=[5.0, 5.1])}
    assert judge(make_entry(), two).word == "not shown: 2 seeds, 3 are needed"
    small = {"cpu": make_card("cpu", ours=[5.0, 5.1, 5.2])}
    assert judge(make_entry(), small).word == "not comparable: tier=cpu is not the paper's scale"
    lossy = {"paper": make_card(ours=[5.0, 5.1, 5.2], comparable=False)}
    assert judge(make_entry(), lossy).word == "not comparable: other data"
    assert judge(make_entry(), lossy).value.statement == "not comparable: data: a lossy copy"
    single = {"": make_card("", ours=[5.0, 5.0, 5.1])}
    assert judge(make_entry(), single).word == "reproduced", "a plan of one budget is at the paper's scale"


@pytest.mark.parametrize("paired", [True, False])
def test_an_order_agrees_with_scipys_tests(make_entry, make_card, paired):
    """All must be better at 5 %; one worse at 5 % over the number of comparisons is a miss."""
    test = stats.ttest_rel if paired else lambda a, b: stats.ttest_ind(a, b, equal_var=False)
    said = set()
    for trial in range(30):
        draws, count = np.random.default_rng(trial), 3 + trial % 5
        ours = draws.normal(size=count)
        others = {name: ours * paired + draws.normal(draws.normal(0.5, 2), 0.5, count) for name in "abc"}
        contenders = {"ours": ours.tolist(), **{name: values.tolist() for name, values in others.items()}}
        found = [(test(ours, values).pvalue, ours.mean() < values.mean()) for values in others.values()]
        expected = "not shown"
        if all(p < 0.05 and better for p, better in found):
            expected = "ordering reproduced"
        elif any(p < 0.05 / 3 and not better for p, better in found):
            expected = "ordering missed"
        card = make_card("cpu", paired, **contenders)
        verdict = judge(make_entry(over=list(others)), {"cpu": card}).ordering
        assert verdict.word.startswith(expected)
        assert "3 comparisons" in verdict.statement
        assert ("(paired, " if paired else "(Welch, ") in verdict.statement
        said.add(expected)
    assert len(said) == 3


def test_the_words_of_an_order(make_entry, make_card):
    values = {"ours": [1.0, 1.1, 1.2], "a": [2.0, 2.1, 2.3], "b": [1.0, 1.3, 1.1], "c": [0.2, 0.4, 0.5]}

    def word(*over, tier="cpu", **more):
        return judge(make_entry(over=list(over)), {tier: make_card(tier, **{**values, **more})}).ordering.word

    assert word("a") == "ordering reproduced (cpu)"
    assert word("a", tier="paper") == "ordering reproduced"
    assert word("a", "b") == "not shown: no clear difference, clear over 1 of 2 (cpu)"
    assert word("b") == "not shown: no clear difference (cpu)"
    assert word("a", "c") == "ordering missed (cpu)"
    assert word("a", "absent") == "not shown: a contender lacks runs, clear over 1 of 2 (cpu)"
    assert word("a", ours=[1.0, 1.1]) == "not shown: too few finished seeds (cpu)"


def test_a_miss_is_held_to_the_number_of_comparisons(make_entry, make_card):
    """p is 0.03: clear alone, not clear as one of three."""
    worse = [0.0, 0.0, 0.0, 0.0]
    ours = [0.4, 0.9, 0.5, 1.3]
    assert 0.05 / 3 < stats.ttest_rel(ours, worse).pvalue < 0.05
    card = {"cpu": make_card("cpu", ours=ours, a=worse, b=[9.0, 0, 1, 0], c=[0, 9.0, 1, 0])}
    assert judge(make_entry(over=["a"]), card).word == "ordering missed (cpu)"
    assert judge(make_entry(over=["a", "b", "c"]), card).word == "not shown: no clear difference (cpu)"


def test_the_order_is_taken_at_the_largest_scale_that_can_say_it(make_entry, make_card):
    cards = {
        "cpu": make_card("cpu", ours=[1.0, 1.1, 1.2], a=[2.0, 2.1, 2.3]),
        "gpu_hour": make_card("gpu_hour", ours=[1.0], a=[0.5]),
    }
    assert judge(make_entry(over=["a"]), cards).word == "ordering reproduced (cpu)"
    cards["paper"] = make_card(ours=[5.0, 5.1, 5.2], a=[2.0, 2.1, 2.4])
    assert judge(make_entry(over=["a"]), cards).word == "reproduced; ordering missed"


def test_other_data_own_options_and_lost_runs_are_said(make_entry, make_card):
    values = {"ours": [5.0, 5.1, 5.2], "a": [6.0, 6.1, 6.3]}
    lossy = judge(make_entry(over=["a"]), {"cpu": make_card("cpu", comparable=False, **values)})
    assert lossy.word == "ordering reproduced (cpu, other data)"

    card = make_card(**values)
    card.provenance["command"] += " --seeds 0,1,2 tier=paper machine=cuda log.progress=false"
    assert judge(make_entry(over=["a"]), {"paper": card}).word == "reproduced; ordering reproduced"
    card.provenance["command"] += " train.steps=10"
    mine = judge(make_entry(over=["a"]), {"paper": card})
    assert mine.value.word == "not comparable: with train.steps=10"
    assert mine.word == "ordering reproduced (train.steps=10)"

    part = make_card(**values)
    part.runs.update(diverged=2)
    for verdict in judge(make_entry(over=["a"]), {"paper": part}):
        assert verdict.statement.endswith("; of the plan's runs 2 diverged, which count in no mean")
