"""What a plan may not say."""

import re
from collections.abc import Iterable

from metalearn.config import Config
from metalearn.registry import UserError, closest
from metalearn.replicate.plan import Plan, SelectOptions
from metalearn.report.plan import check as check_table
from metalearn.report.plan import stage_of

VALUES = ("last", "best")


def check(plan: Plan) -> None:
    """Refuse stages, selections, rows and figures that contradict each other. Raises UserError."""
    check_table(plan)
    for number, (name, stage) in enumerate(plan.stages.items()):
        place = f"replicate.stages.{name}"
        if bool(stage.recipe) == (stage.select is not None):
            raise UserError(f"{place}: must have either a recipe or a select")
        if stage.select:
            if stage.overrides or stage.seeds is not None or stage.per_seed is not None:
                raise UserError(f"{place}: a selection has no overrides, seeds or per_seed of its own")
            _check_selection(plan, place, stage.select, list(plan.stages)[:number])
        _check_seeds(place, stage.seeds, stage.per_seed)
        _check_references(plan, name, list(plan.stages)[:number])
    _check_seeds("replicate", plan.seeds, None)
    for contender, row in plan.table.rows.items():
        if stage_of(row) in plan.selections:
            raise UserError(
                f"replicate.table.rows.{contender}: {stage_of(row)} is a selection, must be a stage of runs"
            )


def _check_seeds(place: str, seeds: Iterable[int] | None, per_seed: int | None) -> None:
    values = None if seeds is None else list(seeds)
    if values is not None and (not values or len(set(values)) < len(values) or min(values) < 0):
        raise UserError(f"{place}.seeds: got {values}, must be one or more different numbers from 0 on")
    if per_seed is not None and per_seed < 1:
        raise UserError(f"{place}.per_seed: got {per_seed}, must be at least 1")


def _check_selection(plan: Plan, place: str, select: SelectOptions, earlier: list[str]) -> None:
    candidates = [name for name in earlier if name not in plan.selections]
    if select.stage not in candidates:
        allowed = ", ".join(closest(select.stage, candidates)) or "none"
        raise UserError(
            f"{place}.select.stage: got {select.stage!r}, must be an earlier stage of runs; choose one of: "
            f"{allowed}"
        )
    if not select.metric.startswith("valid/"):
        raise UserError(
            f"{place}.select.metric: got {select.metric}, must be a validation metric, valid/...: the test "
            "split chooses nothing"
        )
    for key, value, allowed in (("goal", select.goal, ("min", "max")), ("value", select.value, VALUES)):
        if value not in allowed:
            raise UserError(f"{place}.select.{key}: got {value!r}, must be one of {', '.join(allowed)}")


def _check_references(plan: Plan, name: str, earlier: list[str]) -> None:
    """Every `{other}` is an earlier stage that has a run for each seed of this one."""
    for line in plan.stages[name].overrides:
        for other in re.findall(r"{([^{}]*)}", line):
            if other not in earlier:
                raise UserError(
                    f"replicate.stages.{name}: {line!r} names stage {other!r}, which is not one of those "
                    f"before it: {', '.join(earlier) or 'none'}"
                )
            theirs = plan.seeds_of(other)
            lacking = [seed for seed in plan.seeds_of(name) if seed not in theirs]
            if theirs != [None] and lacking:
                raise UserError(
                    f"replicate.stages.{name}: takes seeds {_list(plan.seeds_of(name))}, but {other} has no "
                    f"run with seed {_list(lacking)}; give both the same seeds, or select one run of {other}"
                )


def _list(seeds: list[int | None]) -> str:
    return ", ".join(map(str, seeds))


def check_run(plan: Plan, stage: str, config: Config) -> None:
    """The test split is read by stages of the table alone, at the end; candidates are evaluated.

    Raises UserError.
    """
    builders = [name for name in plan.stages if stage in plan.needs(name)]
    ends = stage in map(stage_of, plan.table.rows.values()) and not builders
    if config.train.test and not ends:
        why = f"{builders[0]} builds on it" if builders else "it is no row of the table"
        raise UserError(
            f"replicate.stages.{stage}: reads the test split, though {why}; add train.test=false to its "
            "overrides: test data are touched once, by a stage of table.rows at the end"
        )
    chosen = any(name in plan.selections for name in builders)
    if chosen and not config.train.evaluate_every:
        raise UserError(
            f"replicate.stages.{stage}: is chosen from by validation, which train.evaluate_every=0 leaves "
            "out; set it above 0"
        )
