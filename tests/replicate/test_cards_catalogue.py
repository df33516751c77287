"""conf/published as it stands: what it names exists, and no recipe says another value."""

from functools import cache

import pytest

from metalearn import cli
from metalearn.compose import options, recompose
from metalearn.registry import UserError
from metalearn.replicate.cards import catalogue
from metalearn.replicate.plan import Plan, block
from metalearn.report.plan import stage_of

cli.register_all()
PLANNED = [entry for entry in catalogue.entries() if entry.row.plan]
PLANS = sorted({str(entry.row.plan) for entry in PLANNED})

GOOD = """
paper: "arXiv:1"
title: A paper
tables:
  table1:
    title: errors
    metric: test/error
    unit: "%"
    goal: min
    scale: published
    rows:
      ours: {value: 2.5, spread: 0.1, plan: toy, contender: ours, over: [theirs]}
      theirs: {value: 3, cited: others}
"""
MISTAKES = [
    ("goal: min", "goal: low", r"toys.yaml: tables.table1.goal: got 'low', must be one of min, max"),
    ("goal: min", "gaol: min", r"tables.table1.gaol: no such option; choose one of: goal"),
    ("value: 2.5", "value: much", r"rows.ours.value: got 'much', must be number \| null"),
    ("value: 2.5, ", "", r"rows.ours.value: has no value"),
    ("spread: 0.1", "spread: -0.1", r"rows.ours.spread: got -0.1, must be at least 0"),
    ("plan: toy, ", "", r"rows.ours: must have both plan and contender, or neither"),
    ("over: [theirs]", "over: [ours]", r"rows.ours.over: 'ours' cannot be ahead of itself"),
    ("over: [theirs]", "over: theirs", r"rows.ours.over: got 'theirs', must be list\[text\]"),
    (", cited: others", "", r"rows.theirs: must have a plan, or say in `cited` whose it is"),
    (", cited: others", ", cited: others, over: [ours]", r"rows.theirs.over: needs a plan"),
    ("tables:", "tables: [", r"toys.yaml: cannot be read"),
    ("title: A paper", "", r"toys.yaml.title: has no value"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toys.yaml").write_text(GOOD)
    return tmp_path


def test_rows_are_read_with_their_places(folder):
    ours, theirs = catalogue.entries(folder)
    assert (ours.place, ours.name, ours.row.value, ours.spread, ours.printed) == (
        "toys/table1", "ours", 2.5, 0.1, "2.5 ± 0.1",
    )  # fmt: skip
    assert (theirs.row.plan, theirs.row.cited, theirs.spread, theirs.printed) == (None, "others", 0.0, "3")
    assert catalogue.metrics("toy", [ours, theirs]) == {"ours": ["test/error"]}


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES, ids=[m for _, _, m in MISTAKES])
def test_a_mistake_names_its_place(folder, right, wrong, message):
    (folder / "toys.yaml").write_text(GOOD.replace(right, wrong, 1))
    with pytest.raises(UserError, match=message):
        catalogue.entries(folder)


def test_rows_are_chosen_by_family_table_paper_or_plan(folder):
    everything = catalogue.entries(folder)
    assert catalogue.chosen(everything, ["toy"]) == everything[:1]
    for name in ("toys", "toys/table1", "arXiv:1"):
        assert catalogue.chosen(everything, [name]) == everything
    with pytest.raises(UserError, match="no published row is of 'toyz'; the closest of 4 names: toy"):
        catalogue.chosen(everything, ["toyz"])


def test_plans_of_the_catalogue_exist():
    assert set(PLANS) <= set(options("recipe"))


@cache
def _plan(name):
    values = block(name)
    assert values is not None, f"{name} has no plan"
    assert "include" not in values, f"{name} is several plans"
    from metalearn.config import typed

    plan = typed(Plan, {**values, "name": name}, "replicate.")
    assert plan.tiers, f"{name} has no tiers"
    return plan


@cache
def _paper(recipe, overrides):
    values = recompose([f"recipe={recipe}", *overrides])
    return values.paper and dict(values.paper)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_contenders_exist_and_recipes_say_the_same_value(name):
    plan = _plan(name)
    for entry in (entry for entry in PLANNED if entry.row.plan == name):
        row = entry.row
        assert {row.contender, *row.over} <= set(plan.table.rows), entry
        assert entry.table.goal == plan.table.goal, entry
        place = plan.table.rows[row.contender or ""]
        metric = place.partition(" ")[2] or plan.table.metric
        stage = plan.stages[stage_of(place)]
        own = tuple(line for line in stage.overrides if line.startswith("paper"))
        paper = _paper(stage.recipe, own)
        if not paper:
            continue
        others = dict(paper["others"]) if paper.get("others") else {}
        said = {paper["metric"]: paper["value"], **others}
        if row.value is not None and said.get(metric) is not None:
            assert said[metric] == row.value, entry
        if metric == paper["metric"] and entry.table.scale == "published" and row.value is not None:
            assert paper["spread"] == row.spread, entry
        for key, value in row.others.items():
            assert said.get(key, value) == value, entry
