"""Trained optimizers beside tuned ones, over runs that leave `artifacts/score.json`."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from metalearn.records import Run
from metalearn.report.claims import half_width
from metalearn.report.numbers import plain
from metalearn.report.page import Block, Grid, Words
from metalearn.report.plan import Table, stage_of

HEADER = (
    "setting", "task", "steps", "last loss", "tuned control", "its last loss", "ratio", "speed-up", "reached",
    "diverged", "rose", "best control", "ratio to it", "problems",
)  # fmt: skip
NUMERIC = frozenset({2, 3, 5, 6, 7, 8, 9, 10, 12})
RULE = (
    "ratio: our last loss over the tuned control's, the geometric mean over problems, here over seeds with "
    "its 95 % t-interval; below 1 we end lower. speed-up: the steps that the control takes to its own last "
    "loss over the steps that we take to it, on mean curves; where we never get there it is an upper bound, "
    "and the table says in how many seeds. reached: share of problems on which we get there. diverged: share "
    "of our runs with a loss that is not finite. rose: share that end above their start. Losses are running "
    "means. Learning rates were tuned on validation problems of the same setting; all figures are of test "
    "problems, the same for all. * the best rate was the grid's smallest or largest."
)


def scores(tables: Sequence[Table]) -> list[Block]:
    """One row a stage with scores, and what the columns mean; nothing where there is none."""
    found = [(stage, read(table.finished(stage))) for table in tables for stage in _stages(table)]
    rows = [_row(stage, records) for stage, records in found if records]
    if not rows:
        return []
    costs = [_costs(records) for _, records in found if records]
    return [Grid(HEADER, rows, "", NUMERIC), Words(RULE), *([Words(costs[0])] if costs[0] else [])]


def read(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The scores of a stage's runs that were held against controls."""
    paths = [run.path / "artifacts" / "score.json" for run in runs]
    found = [json.loads(path.read_text("utf-8")) for path in paths if path.exists()]
    return [record for record in found if record["rates"]]


def _stages(table: Table) -> list[str]:
    """Those of the table's rows, each once."""
    return list(dict.fromkeys(map(stage_of, table.plan.table.rows.values())))


def _row(stage: str, records: list[dict[str, Any]]) -> tuple[str, ...]:
    first, reference = records[0], records[0]["reference"]
    metrics = [record["metrics"] for record in records]

    def mean(key: str) -> str:
        return plain(statistics.fmean(m[key] for m in metrics))

    def share(key: str) -> str:
        return f"{statistics.fmean(m[key] for m in metrics):.0%}"

    edge = "*" if any(reference in record["edge_of_grid"] for record in records) else ""
    winners = dict.fromkeys(record["winner"] for record in records)
    return (
        stage.replace("_", " "),
        first["task"],
        f"{first['horizon']:,}",
        mean("final_loss"),
        f"{reference} {_rates(records, reference)}{edge}",
        mean(f"final_loss/{reference}"),
        _geometric([m["final_ratio"] for m in metrics]),
        _speed_up(records),
        share("reached"),
        share("diverged"),
        share("rose"),
        ", ".join(winners),
        _geometric([m["final_ratio/best"] for m in metrics]),
        f"{first['problems']} x {len(records)} seed{'s' * (len(records) != 1)}",
    )


def _rates(records: list[dict[str, Any]], name: str) -> str:
    rates = sorted({record["rates"][name] for record in records})
    return f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"


def _geometric(values: Sequence[float]) -> str:
    """Geometric mean and the 95 % t-interval of the logarithms' mean."""
    logs = [math.log(value) for value in values]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return f"{math.exp(middle):.3g}"
    half = half_width(logs)
    return f"{math.exp(middle):.3g} ({_bound(middle - half)} to {_bound(middle + half)})"


def _bound(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.3g}"


def _speed_up(records: list[dict[str, Any]]) -> str:
    never = sum(record["metrics"]["steps_to_reach"] > record["horizon"] for record in records)
    words = _geometric([record["metrics"]["speed_up"] for record in records])
    return f"at most {words}; never in {never} of {len(records)} seeds" if never else words


def _costs(records: list[dict[str, Any]]) -> str:
    """What tuning and meta-training took, of the first setting."""
    tuning, trained = records[0]["budget"]["tuning"], records[0]["budget"]["meta_training"]
    if not tuning or not trained:
        return ""
    seconds = f" in {trained['seconds']:,.0f} s" if trained["seconds"] is not None else ""
    meta = f"meta-training took {trained['optimizee_steps']:,} steps of one problem{seconds}, once for all"
    pairs = f"{tuning['optimizee_steps']:,} steps ({tuning['rollouts']} pairs of optimizer and rate)"
    return f"Budget of one seed: {meta} settings; tuning the controls {pairs} for each setting."
