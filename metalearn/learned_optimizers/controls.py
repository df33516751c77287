"""What a finished run of `tuned_optimizers` found, for others to run its winners again."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.config import typed
from metalearn.learned_optimizers.config import OptimizeeOptions, TunedOptimizersOptions
from metalearn.learned_optimizers.optimizees import Family
from metalearn.learned_optimizers.rules import HandRule
from metalearn.registry import UserError

FREE = ("name", "valid_problems", "test_problems")  # what a run may choose itself


class Controls(NamedTuple):
    """Each optimizer at the rate that did best on validation problems."""

    rules: dict[str, HandRule]
    winner: str  # the one of them with the lowest validation loss
    at_edge: list[str]  # those whose best rate is the grid's smallest or largest
    budget: dict[str, int]  # rollouts, and steps of one problem in all


def read(path: str, options: OptimizeeOptions, family: Family) -> Controls:
    """The winners of a run directory. Raises UserError if there are none, or other problems' ones."""
    record = _record(Path(path).expanduser())
    _check_same(record, options, family, path)
    tuned = typed(TunedOptimizersOptions, record["options"], "tuning.json: options.")
    rules = {name: HandRule(name, rate, tuned) for name, rate in record["best"].items()}
    return Controls(rules, record["winner"], record["edge_of_grid"], record["budget"])


def _record(folder: Path) -> dict[str, Any]:
    for place in (folder / "artifacts" / "tuning.json", folder / "tuning.json"):
        if place.exists():
            return json.loads(place.read_text("utf-8"))
    raise UserError(
        f"method.controls: got {folder}, where there is no artifacts/tuning.json; give the run directory of "
        "a finished run of method=tuned_optimizers, or null"
    )


def _check_same(record: dict[str, Any], options: OptimizeeOptions, family: Family, path: str) -> None:
    named = {f.name for f in dataclasses.fields(OptimizeeOptions)} - set(FREE)
    told = {"task": family.spec.name, "coordinates": family.coordinates}
    told = {key: value for key, value in told.items() if key in record}  # older ones know no coordinates
    ours = {key: value for key, value in dataclasses.asdict(options).items() if key in named} | told
    theirs = {key: record["options"].get(key) for key in named} | {key: record[key] for key in told}
    different = [key for key in sorted(ours) if ours[key] != theirs[key]]
    if different:
        found = ", ".join(f"{key} {theirs[key]!r} for {ours[key]!r}" for key in different)
        raise UserError(
            f"method.controls: {path} was tuned on other problems, {found}; tune with the same task, network "
            "and options"
        )
