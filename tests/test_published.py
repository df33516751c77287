"""The catalogue of published rows and the plans that it names: tiers, contenders, values."""

from collections.abc import Iterable

import pytest

from metalearn import cli
from metalearn.compose import compose, options
from metalearn.config import typed
from metalearn.replicate.cards.catalogue import Entry, entries
from metalearn.replicate.check import check
from metalearn.replicate.jobs import jobs
from metalearn.replicate.plan import Plan, _take_tier, block
from metalearn.report.plan import stage_of

cli.register_all()
ROWS = entries()
TIERS = ["smoke", "cpu", "gpu_hour", "paper"]


def _plans() -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in ROWS:
        if entry.row.plan:
            found.setdefault(entry.row.plan, []).append(entry)
    return found


def _first_of_each_family(names: Iterable[str]) -> list[str]:
    return list({name.partition("/")[0]: name for name in reversed(list(names))}.values())


def _mostly_slow(names: Iterable[str]) -> list:
    names = list(names)
    firsts = _first_of_each_family(names)
    return [name if name in firsts else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _at(values: dict, name: str, tier: str) -> Plan:
    plan: Plan = typed(Plan, {**values, "name": name}, "replicate.")
    _take_tier(plan, tier)
    check(plan)
    return plan


def test_every_row_is_cited_or_has_a_plan():
    recipes = options("recipe")
    for entry in ROWS:
        assert entry.row.plan is None or entry.row.plan in recipes, entry.place
        assert entry.row.value is not None or entry.table.scale == "reading", entry.name


COUNTS = {  # rows of the paper's tables as the sheets list them, counted by hand
    "darts": {"table1": 14, "table2": 10, "table3": 11, "table4": 7},
    "hypernetworks": {"table2": 16, "table3": 13, "table4": 16, "table5": 13, "table6": 4, "table7": 2},
    "learned_optimizers": {"figure4_left": 5, "figure4_centre": 5, "figure4_right": 5, "figure6": 24},
}


@pytest.mark.parametrize("family", COUNTS)
def test_all_rows_of_a_table_are_there(family):
    for table, count in COUNTS[family].items():
        assert sum(entry.place == f"{family}/{table}" for entry in ROWS) == count


@pytest.mark.parametrize("name", _mostly_slow(_plans()))
def test_the_plan_of_a_row_has_all_tiers_and_its_contender(name):
    values = block(name)
    assert values is not None
    for tier in TIERS:
        plan = _at(values, name, tier)
        for entry in _plans()[name]:
            row = entry.row
            assert {row.contender, *row.over} <= set(plan.table.rows), entry.name
            assert plan.table.goal == entry.table.goal
            assert plan.table.metric == entry.table.metric


@pytest.mark.slow
@pytest.mark.parametrize("name", _plans())
def test_the_value_of_a_row_is_that_of_its_recipe(name, tmp_path):
    """Where a recipe carries a published value at the paper's scale, it is the catalogue's."""
    values = block(name)
    assert values is not None
    plan = _at(values, name, "paper")
    found = {job.stage: job.overrides for job in reversed(jobs(plan, [], tmp_path)) if not job.choice}
    printed: dict[str, dict[str, float | None]] = {}
    for entry in _plans()[name]:
        row = plan.table.rows[entry.row.contender or ""]
        stage, metric = stage_of(row), row.removeprefix(stage_of(row)).strip() or entry.table.metric
        if entry.row.value is None:
            continue
        if stage not in printed:
            paper = compose(found[stage]).paper
            printed[stage] = {paper.metric: paper.value, **paper.others} if paper else {}
        assert printed[stage].get(metric, entry.row.value) == entry.row.value, entry.name
