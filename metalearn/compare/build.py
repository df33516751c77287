"""A comparison from runs, wherever they were read."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from metalearn.compare.differences import differences
from metalearn.compare.estimates import bands, counted, estimates
from metalearn.compare.grouping import grouped, labels, learned, telling, text
from metalearn.compare.model import Comparison, Entry, Group
from metalearn.compare.pairs import pairs, task
from metalearn.records import NOT_COMPARABLE
from metalearn.registry import UserError, closest
from metalearn.report.numbers import span

TESTS = 3  # metrics of tests that a table shows at once
NAMED = 6  # unfinished runs that are told one by one


def build(
    entries: Sequence[Entry],
    metrics: Sequence[str] = (),
    baseline: str | None = None,
    notices: Sequence[str] = (),
    title: str = "Comparison",
) -> Comparison:
    """What the runs have in common, in what they differ, how they ended.

    `metrics`: those in tables and tests, else those that the runs monitor and those of tests. `baseline`: the
    label of a configuration or a part of it, else the first. Raises UserError: no row, no such metric.
    """
    if not any(entry.final for entry in entries):
        raise UserError(f"compare: none of these {len(entries)} runs has a row in metrics.jsonl yet")
    groups, keys = _groups(entries)
    shown = chosen(entries, metrics)
    _refuse_strangers(groups, shown)
    first = _baseline(groups, shown, baseline)
    curved = dict.fromkeys(metric for group in groups for metric in group.curves)
    words, pictures = differences(groups)
    return Comparison(
        title=title,
        groups=tuple(groups),
        keys=tuple(keys),
        metrics=tuple(shown),
        curved=tuple(sorted(curved, key=lambda metric: metric not in shown)),  # those in the table first
        pairs=tuple(pairs(groups, first, shown)),
        notices=(*notices, *_notices(groups), *_untested(groups, first)),
        stamps=_stamps(entries, shown),
        words=words,
        pictures=pictures,
    )


def _groups(entries: Sequence[Entry]) -> tuple[list[Group], list[str]]:
    found = grouped(entries)
    configs = [learned(group[0]) for group in found]
    keys = telling(configs)
    names = labels(found, keys, _name(found[0][0]))
    made = [
        _group(name, {key: text(config[key]) for key in keys if key in config}, group)
        for name, config, group in zip(names, configs, found, strict=True)
    ]
    return made, keys


def _name(entry: Entry) -> str:
    return str(entry.config.get("name") or "run")


def _group(label: str, options: dict[str, str], entries: Sequence[Entry]) -> Group:
    counting = counted(entries)
    seconds = [entry.seconds for entry in counting if entry.seconds is not None]
    sizes = [entry.parameters for entry in entries if entry.parameters is not None]
    return Group(
        label=label,
        options=options,
        entries=tuple(entries),
        final=estimates(counting, "final"),
        best=estimates(counting, "best"),
        curves=bands(counting),
        parameters=span(sizes),
        seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def chosen(entries: Sequence[Entry], wanted: Sequence[str]) -> list[str]:
    """The metrics that tables show. Raises UserError listing those that exist."""
    every = list(dict.fromkeys(metric for entry in entries for metric in entry.final))
    for metric in wanted:
        if metric not in every:
            raise UserError(
                f"--metric: no run has {metric!r}; choose of: {', '.join(closest(metric, sorted(every)))}"
            )
    if wanted:
        return list(dict.fromkeys(wanted))
    monitored = {entry.config.get("train.monitor") for entry in entries}
    tests = [metric for metric in every if metric.startswith("test/")]
    if len(tests) > TESTS:  # those of what is monitored, where there are any
        quantities = {str(metric).rpartition("/")[2] for metric in monitored}
        tests = [metric for metric in tests if metric.removeprefix("test/") in quantities] or tests[:TESTS]
    found = [metric for metric in every if metric in monitored or metric in tests]
    return found or [metric for metric in every if metric.startswith("valid/")] or every


def _baseline(groups: Sequence[Group], metrics: Sequence[str], wanted: str | None) -> Group:
    """The one that is wanted, else the first that has most of the metrics."""
    if wanted is None:
        return max(groups, key=lambda group: sum(metric in group.final for metric in metrics))
    names = [group.label for group in groups]
    found = [group for group in groups if group.label == wanted] or [
        group for group in groups if wanted in group.label
    ]
    if len(found) == 1:
        return found[0]
    how = "is part of several configurations" if found else "is no configuration"
    raise UserError(f"--baseline: {wanted!r} {how}; choose one of: {'; '.join(closest(wanted, names))}")


def _notices(groups: Sequence[Group]) -> list[str]:
    entries = [entry for group in groups for entry in group.entries]
    unfinished = [entry for entry in entries if entry.state != "finished"]
    said = [
        f"{entry.place} is {entry.state} at step {entry.step}{': ' if entry.message else ''}{entry.message}"
        for entry in unfinished[:NAMED]
    ]
    if len(unfinished) > NAMED:
        counts = Counter(entry.state for entry in unfinished[NAMED:])
        said.append(f"and further runs: {', '.join(f'{count} {state}' for state, count in counts.items())}")
    left_out = sum(len(group.entries) - len(counted(group.entries)) for group in groups)
    if left_out:
        said.append(
            f"{left_out} of {len(entries)} runs count in no mean: others of their configuration finished"
        )
    return said


def _untested(groups: Sequence[Group], first: Group) -> list[str]:
    others = [group for group in groups if task(group) != task(first)]
    if not others:
        return []
    names = ", ".join(dict.fromkeys(str(task(group)) for group in others))
    return [
        f"{len(others)} of {len(groups)} configurations learn another task ({names}) than the baseline "
        f"{first.label} ({task(first)}): no test holds them against it; --baseline, or fewer runs, chooses"
    ]


def _refuse_strangers(groups: Sequence[Group], shown: Sequence[str]) -> None:
    """Several configurations of which no two have one of the metrics."""
    having = Counter(metric for group in groups for metric in shown if metric in group.final)
    if len(groups) > 1 and max(having.values(), default=0) < 2:
        raise UserError(
            f"compare: nothing in common: no two of these {len(groups)} configurations have the same of "
            f"{', '.join(shown)}; name metrics that they share by --metric, or compare runs of one kind"
        )


def _stamps(entries: Sequence[Entry], metrics: Sequence[str]) -> dict[str, Any]:
    """Test figures of data that is not the published one."""
    if all(entry.comparable for entry in entries):
        return {}
    return {metric: NOT_COMPARABLE for metric in metrics if metric.startswith("test/")}
