"""Several runs side by side: what differs, how they ended, their curves."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn import records
from metalearn.records import Run
from metalearn.registry import UserError
from metalearn.report import drawings, origin
from metalearn.report.claims import summary
from metalearn.report.numbers import duration, span
from metalearn.report.page import Document, Gallery, Grid, Section, Words, write
from metalearn.report.plan import Entry
from metalearn.report.terminal import show

RULE = (
    "Runs that differ only in their seed form one row; ± is the sample standard deviation over seeds. "
    "'best' is the best value on the way, by train.goal."
)


def runs(paths: Sequence[Path], output: Path | None = None) -> Grid:
    """Print the comparison; with `output` also write compare.md, compare.csv and compare.html there.

    Raises UserError for a path that is no run directory, or if none of the runs has a row yet.
    """
    found = list({path.resolve(): records.read(path) for path in paths}.values())
    if not any(run.metrics for run in found):
        raise UserError(f"compare: none of these {len(found)} runs has a row in metrics.jsonl yet")
    groups = _named(records.group(found))
    grid = table(groups)
    page = None
    if output is not None:
        page = write(_document(groups, grid, output), output, "compare")
        with (output / "compare.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_plain_rows(groups))
    show("compare", grid, [], _notices(found), page)
    return grid


def _named(groups: list[list[Run]]) -> dict[str, list[Run]]:
    """Each group under the options in which it differs from the others, or its name where there is one."""
    if len(groups) == 1:
        return {str(groups[0][0].config.get("name", "run")): groups[0]}
    configs = [records.learned(group[0]) for group in groups]
    keys = records.differing(configs)
    # a different method brings all of its options along: its name says enough
    telling = [key for key in keys if key.endswith(".name")] or keys
    names = [_label(config, telling) for config in configs]
    if len(set(names)) < len(names):
        names = [_label(config, keys) for config in configs]
    return dict(zip(names, groups, strict=True))


def _label(config: dict[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={_text(config.get(key, '-'))}" for key in keys if key in config)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def metrics_of(groups: dict[str, list[Run]]) -> list[str]:
    """What the columns show: validation and test metrics if there are any, else all."""
    every = list(dict.fromkeys(m for group in groups.values() for run in group for m in run.metrics))
    return [metric for metric in every if metric.startswith(("valid/", "test/"))] or every


def table(groups: dict[str, list[Run]]) -> Grid:
    """One row a group: its differing options, seeds, last and best metrics, time of a run."""
    configs = {name: records.learned(group[0]) for name, group in groups.items()}
    keys = records.differing(list(configs.values()))
    columns = metrics_of(groups)
    curved = _with_best(groups, columns)
    header = [
        *(keys or ["run"]),
        "runs",
        "seeds",
        *columns,
        *(f"{m} (best)" for m in curved),
        "parameters",
        "time a run",
    ]
    rows = []
    for name, group in groups.items():
        options = [_text(configs[name].get(key, "-")) for key in keys] or [name]
        seconds = [run.seconds for run in group if run.seconds is not None]
        parameters = [run.parameters for run in group if run.parameters is not None]
        rows.append([
            *options,
            str(len(group)),
            ", ".join(str(run.seed) for run in group),
            *(_value(group, metric, best=False) for metric in columns),
            *(_value(group, metric, best=True) for metric in curved),
            span(parameters),
            duration(sum(seconds) / len(seconds) if seconds else None),
        ])  # fmt: skip
    return Grid(header, rows, "", frozenset(range(len(keys) or 1, len(header))))


def _with_best(groups: dict[str, list[Run]], columns: Sequence[str]) -> list[str]:
    """The metrics whose best value has a column: those that `train.monitor` names, else all but tests."""
    monitors = {run.config.get("train", {}).get("monitor") for group in groups.values() for run in group}
    curved = [metric for metric in columns if not metric.startswith("test/")]
    return [metric for metric in curved if metric in monitors] or curved


def _values(group: Sequence[Run], metric: str, best: bool) -> list[float]:
    having = [run for run in group if metric in run.metrics]
    return [run.best(metric).value if best else run.last(metric) for run in having]


def _value(group: Sequence[Run], metric: str, best: bool) -> str:
    values = _values(group, metric, best)
    if not values:
        return "-"
    lacking = f" ({len(values)} of {len(group)})" if len(values) < len(group) else ""
    stamp = next((f" ({run.stamp(metric)})" for run in group if run.stamp(metric)), "")
    return f"{summary(values)}{lacking}{stamp}"


def _notices(found: Sequence[Run]) -> list[str]:
    return [
        f"{run.path} is {run.state} at step {run.step}{': ' if run.message else ''}{run.message}"
        for run in found
        if run.state != "finished"
    ]


def _plain_rows(groups: dict[str, list[Run]]) -> list[list[Any]]:
    """For other programs: one line a run, full precision."""
    everything = [run for group in groups.values() for run in group]
    keys = records.differing([records.learned(run) for run in everything])
    columns = list(dict.fromkeys(metric for run in everything for metric in run.metrics))
    ends = [part for metric in columns for part in (metric, f"{metric} best")]
    lines: list[list[Any]] = [
        ["run", "group", "state", "step", "seed", *keys, *ends, "comparable", "parameters", "seconds"]
    ]
    for name, group in groups.items():
        for run in group:
            values = [
                value
                for metric in columns
                for value in (
                    (run.last(metric), run.best(metric).value) if metric in run.metrics else ("", "")
                )
            ]
            options = [records.learned(run).get(key, "") for key in keys]
            line = [run.path, name, run.state, run.step, run.seed, *options, *values]
            lines.append([*line, run.comparable, run.parameters, run.seconds])
    return lines


def _document(groups: dict[str, list[Run]], grid: Grid, folder: Path) -> Document:
    found = [run for group in groups.values() for run in group]
    entries = [
        (name, Entry(run.path.name, run.seed, run.path, run, run.state, run.message))
        for name, group in groups.items()
        for run in group
    ]
    curves = list(drawings.of_metrics(groups))
    sections = [
        Section("Results", [grid, Words(RULE)]),
        *([Section("Curves", [Gallery(curves)])] if curves else []),
        Section("Runs", [origin.listing(entries, folder, ("configuration", "run"))]),
        Section("Provenance", [origin.machine(found), origin.data(found), origin.commands(found)]),
    ]
    lead = f"{len(found)} runs of {len(groups)} configuration{'s' * (len(groups) != 1)}."
    return Document("Comparison", lead, _notices(found), sections)
