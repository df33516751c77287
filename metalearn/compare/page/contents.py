"""What the page's script reads: a comparison as plain dictionaries."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from metalearn.compare.model import Band, Comparison, Entry, Estimate, Group, Pair, Series
from metalearn.compare.page.packing import Steps, number, packed, room, thinned
from metalearn.records import PLACES
from metalearn.report.numbers import duration, measured, plain


def contents(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """Everything that the page shows but its pictures; links are relative to `folder`."""
    curved, metrics = comparison.curved, comparison.metrics
    entries = [entry for group in comparison.groups for entry in group.entries]
    bands = [(curve.steps, 3) for group in comparison.groups for curve in _of(group.curves, curved)]
    series = [(curve.steps, 1) for entry in entries for curve in _of(entry.series, curved)]
    most, steps = room([*bands, *series]), Steps()
    groups = [_group(group, comparison, (steps, most), folder) for group in comparison.groups]
    longest = max((len(axis) for axis, _ in [*bands, *series]), default=0)
    return {
        "title": comparison.title,
        "keys": comparison.keys,
        "metrics": metrics,
        "curved": curved,
        "goals": {metric: _goal(entries, metric) for metric in dict.fromkeys([*metrics, *curved])},
        "stamps": dict(comparison.stamps),
        "groups": groups,
        "shared": _shared(comparison),
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "origin": _origin(entries),
        "thinned": most if longest > most else None,
        "steps": steps.axes,
    }


def _of(curves: Mapping[str, Any], metrics: Iterable[str]) -> list[Any]:
    return [curves[metric] for metric in metrics if metric in curves]


def _goal(entries: Sequence[Entry], metric: str) -> str:
    return next((entry.goals[metric] for entry in entries if metric in entry.goals), "min")


def _group(group: Group, comparison: Comparison, axes: tuple[Steps, int], folder: Path) -> dict[str, Any]:
    curves = {name: _band(group.curves[name], *axes) for name in comparison.curved if name in group.curves}
    energies = [entry.joules for entry in group.entries if entry.joules is not None]
    joules = sum(energies) / len(energies) if energies else None
    return {
        "label": group.label,
        "options": [group.options.get(key, "") for key in comparison.keys],
        "states": dict(Counter(entry.state for entry in group.entries)),
        "final": [_estimate(group.final.get(metric)) for metric in comparison.metrics],
        "best": [_estimate(group.best.get(metric)) for metric in comparison.metrics],
        "parameters": group.parameters,
        "seconds": number(group.seconds),
        "time": duration(group.seconds),
        "joules": number(joules),
        "energy": energy(joules),
        "comparable": all(entry.comparable for entry in group.entries),
        "curves": curves,
        "runs": [_run(entry, comparison, axes, folder) for entry in group.entries],
    }


def energy(joules: float | None) -> str:
    """Watt-hours, or kilowatt-hours from 1,000 on."""
    if joules is None:
        return "-"
    hours = joules / 3600
    return f"{plain(hours / 1000)} kWh" if hours >= 1000 else f"{hours:.3g} Wh"


def _estimate(estimate: Estimate | None) -> Any:
    """[mean, text, text of the interval, values counted]."""
    if estimate is None:
        return None
    half, mean = estimate.half_width, estimate.mean
    interval = "" if half is None else f"{plain(mean - half)} to {plain(mean + half)}"
    return [number(mean), measured(mean, estimate.deviation), interval, len(estimate.values)]


def _band(band: Band, steps: Steps, most: int) -> list[Any]:
    kept = thinned(len(band.steps), most)
    axis = steps.place(band.steps[kept])
    if band.runs < 2:
        return [band.runs, axis, packed(band.mean[kept])]
    return [band.runs, axis, *(packed(values[kept]) for values in (band.mean, band.low, band.high))]


def _series(series: Series, steps: Steps, most: int) -> list[Any]:
    kept = thinned(len(series.steps), most)
    return [steps.place(series.steps[kept]), packed(series.values[kept])]


def _run(entry: Entry, comparison: Comparison, axes: tuple[Steps, int], folder: Path) -> dict[str, Any]:
    series = {name: _series(entry.series[name], *axes) for name in comparison.curved if name in entry.series}
    return {
        "place": entry.place,
        "link": link(entry, folder),
        "source": entry.source,
        "seed": entry.seed,
        "state": entry.state,
        "step": entry.step,
        "message": entry.message,
        "final": [number(entry.final.get(metric)) for metric in comparison.metrics],
        "best": [number(entry.best.get(metric)) for metric in comparison.metrics],
        "seconds": number(entry.seconds),
        "time": duration(entry.seconds),
        "energy": energy(entry.joules),
        "comparable": entry.comparable,
        "series": series,
    }


def link(entry: Entry, folder: Path) -> str:
    """The way to a run: its address at W&B, or its folder seen from the page's; empty where there is none."""
    if entry.place.startswith(("https://", "http://")):
        return entry.place
    path = Path(entry.place)
    return f"./{quote(os.path.relpath(path, folder))}/" if path.exists() else ""


def _pair(pair: Pair) -> dict[str, Any]:
    claim = pair.claim
    difference = "" if claim.difference is None else measured(claim.difference, claim.half_width)
    return {
        "metric": pair.metric,
        "kind": pair.kind,
        "first": pair.first,
        "second": pair.second,
        "verdict": claim.verdict,
        "statement": claim.statement,
        "difference": number(claim.difference),
        "text": difference,
        "probability": number(pair.probability),
        "basis": pair.basis,
    }


def _shared(comparison: Comparison) -> list[tuple[str, str]]:
    """The settings that are the same in all configurations."""
    configs = [group.entries[0].config for group in comparison.groups if group.entries]
    first = configs[0] if configs else {}
    absent = object()
    return [
        (key, str(value))
        for key, value in first.items()
        if key not in comparison.keys
        and key.partition(".")[0] not in PLACES
        and all(config.get(key, absent) == value for config in configs)
    ]


def _origin(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Where the runs come from, in counts."""
    parts = {
        "Read from": Counter(entry.source for entry in entries),
        "States": Counter(entry.state for entry in entries),
        "Test figures": Counter(
            "comparable with papers" if entry.comparable else "not comparable with papers"
            for entry in entries
        ),
    }
    return [
        (what, ", ".join(f"{name}: {count} of {len(entries)} runs" for name, count in counts.items()))
        for what, counts in parts.items()
    ]
