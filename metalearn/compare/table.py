"""A comparison as tables: one row a configuration."""

from collections import Counter
from collections.abc import Sequence

from metalearn.compare.grouping import apart, short
from metalearn.compare.model import Comparison, Estimate, Group
from metalearn.compare.pairs import probability
from metalearn.report.numbers import duration, measured, plain
from metalearn.report.page import Grid

RULE = (
    "Runs that differ only in their seed form one row. ± is the sample standard deviation over seeds, the "
    "interval is the 95 % t-interval of the mean; 'best' is the best value on the way, by train.goal."
)


def overview(comparison: Comparison, full: bool = True) -> Grid:
    """Runs, final and best metrics, parameters, time and energy of a run.

    If `full`, options and seeds too, and what must be said of a value stands in its cell, else in the head.
    """
    heads = short(comparison.keys)
    shown = list(comparison.keys) if full else []
    columns = [(metric, kind) for metric in comparison.metrics for kind in kinds(comparison, metric)]
    energy = any(entry.joules is not None for group in comparison.groups for entry in group.entries)
    header = [
        "configuration", *(heads[key] for key in shown), "runs", *(["seeds"] if full else []),
        *(head(metric, kind) if full else stamped(comparison, metric, kind) for metric, kind in columns),
        "parameters", *(["time a run", "energy a run"] if full else ["time", "energy"])[: 1 + energy],
    ]  # fmt: skip
    rows = [
        [
            group.label,
            *(group.options.get(key, "-") for key in shown),
            runs(group),
            *([seeds(group)] if full else []),
            *(cell(comparison if full else None, group, metric, kind) for metric, kind in columns),
            group.parameters,
            duration(group.seconds),
            *([watt_hours(group)] if energy else []),
        ]
        for group in comparison.groups
    ]
    return Grid(header, rows, "", frozenset(range(1 + len(shown), len(header))))


def kinds(comparison: Comparison, metric: str) -> tuple[str, ...]:
    """A metric without a curve has one value, the final one."""
    return ("final", "best") if metric in comparison.curved else ("final",)


def head(metric: str, kind: str) -> str:
    """A column's name."""
    return metric if kind == "final" else f"{metric} (best)"


def stamped(comparison: Comparison, metric: str, kind: str) -> str:
    """A column's name, and what must be said of its values."""
    stamp = comparison.stamps.get(metric)
    return f"{head(metric, kind)}\n{stamp}" if stamp else head(metric, kind)


def cell(comparison: Comparison | None, group: Group, metric: str, kind: str) -> str:
    """Mean ± deviation, the interval in a second line; with a comparison what must be said of the value."""
    estimate: Estimate | None = getattr(group, kind).get(metric)
    if estimate is None:
        return "-"
    lines = [measured(estimate.mean, estimate.deviation)]
    if estimate.half_width is not None:
        low, high = estimate.mean - estimate.half_width, estimate.mean + estimate.half_width
        lines.append(f"{plain(low)} to {plain(high)}")
    if len(estimate.values) < len(group.entries):
        lines[0] += f" ({len(estimate.values)} of {len(group.entries)})"
    stamp = comparison.stamps.get(metric) if comparison else None
    return "\n".join([*lines, stamp] if stamp else lines)


def runs(group: Group) -> str:
    """How many, and the states of those that did not finish."""
    states = Counter(entry.state for entry in group.entries if entry.state != "finished")
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{len(group.entries)} ({told})" if told else str(len(group.entries))


def seeds(group: Group) -> str:
    """Those of its runs."""
    return ", ".join("-" if entry.seed is None else str(entry.seed) for entry in group.entries)


def watt_hours(group: Group) -> str:
    """The mean energy of the runs that told theirs."""
    found = [entry.joules for entry in group.entries if entry.joules is not None]
    return f"{plain(sum(found) / len(found) / 3600)} Wh" if found else "-"


def options(comparison: Comparison) -> Grid | None:
    """What the labels leave out of the differences; None where they tell all."""
    heads = short(comparison.keys)
    columns = {key: apart([group.options.get(key, "") for group in comparison.groups]) for key in heads}
    rows = [
        [group.label, ", ".join(f"{heads[key]}={columns[key][place]}" for key in group.options)]
        for place, group in enumerate(comparison.groups)
    ]
    return Grid(["configuration", "differs in"], rows) if any(label != told for label, told in rows) else None


def tests(comparison: Comparison) -> Grid | None:
    """All paired tests."""
    header = ["metric", "baseline", "configuration", "difference", "p", "verdict", "basis"]
    rows = [
        [
            head(pair.metric, pair.kind),
            pair.first,
            pair.second,
            "-" if pair.claim.difference is None else measured(pair.claim.difference, pair.claim.half_width),
            "-" if pair.probability is None else probability(pair.probability),
            pair.claim.verdict,
            pair.basis or "-",
        ]
        for pair in comparison.pairs
    ]
    return Grid(header, rows, "", frozenset({3, 4})) if rows else None


def wrapped(grid: Grid, width: int, fixed: int = 1) -> list[Sequence[int]]:
    """The columns of as many tables as it takes for `width`; each begins with the first `fixed` ones."""
    sizes = [_size(grid, number) for number in range(len(grid.header))]
    sizes[0] = min(sizes[0], width // 3)
    first, parts = list(range(fixed)), [[]]
    room = width - 1 - sum(sizes[number] + 3 for number in first)
    left = room
    for number in range(fixed, len(sizes)):
        if sizes[number] + 3 > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(number)
        left -= sizes[number] + 3
    return [[*first, *part] for part in parts]


def broken(name: str) -> str:
    """A column's name in lines: the kind and what must be said in lines of their own."""
    return name.replace(" (best)", "\n(best)").replace(" with ", "\nwith ")


def _size(grid: Grid, column: int) -> int:
    cells = [broken(grid.header[column]), *(str(row[column]) for row in grid.rows)]
    return max(len(line) for text in cells for line in text.split("\n"))
