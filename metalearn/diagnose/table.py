"""The rows of a diagnosis, and how they read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from metalearn.diagnose import candidate
from metalearn.diagnose.accuracy import Accuracy, accuracy
from metalearn.diagnose.candidate import Candidate
from metalearn.diagnose.config import CandidateOptions, Diagnosis
from metalearn.diagnose.cost import LONGEST, milliseconds, peak_memory
from metalearn.diagnose.subject import Subject
from metalearn.registry import UserError
from metalearn.rng import generator

MIB = 2**20
NOTHING = "gives zero: what it looks at does not depend on these meta-parameters"


@dataclass(frozen=True)
class Row:
    """What was measured of one estimator, or why nothing was."""

    label: str
    accuracy: Accuracy | None = None
    milliseconds: float | None = None  # of one step's hypergradient
    peak_bytes: int | None = None  # of one situation, above what was there before
    reason: str = ""  # why the estimator cannot work here, or gives nothing


COLUMNS: dict[str, Callable[[Row], object]] = {
    "estimator": lambda row: row.label,
    "cosine": lambda row: row.accuracy and row.accuracy.cosine,
    "relative_norm": lambda row: row.accuracy and row.accuracy.relative_norm,
    "bias": lambda row: row.accuracy and row.accuracy.bias,
    "bias_floor": lambda row: row.accuracy and row.accuracy.floor,
    "deviation": lambda row: row.accuracy and row.accuracy.deviation,
    "draws": lambda row: row.accuracy and row.accuracy.draws,
    "milliseconds": lambda row: row.milliseconds,
    "peak_mib": lambda row: None if row.peak_bytes is None else row.peak_bytes / MIB,
    "residual": lambda row: row.accuracy and row.accuracy.residual,
    "reason": lambda row: row.reason,
}
HEADS = {
    "relative_norm": "rel. norm",
    "bias_floor": "bias s.e.",
    "deviation": "std. dev.",
    "milliseconds": "ms",
    "peak_mib": "peak MiB",
}
MEANING = (
    "Columns are relative to the exact hypergradient: reverse mode through the whole segment, in the same "
    "precision. bias: norm of the mean error over draws; bias s.e.: that mean's standard error, so a bias of "
    "its size may be none; std. dev.: root of a draw's summed variance. ms: median of one step's "
    "hypergradient; peak MiB: what one estimate holds at most above what was there before."
)


def measure(subject: Subject, diagnosis: Diagnosis, options: Sequence[CandidateOptions]) -> list[Row]:
    """One row for each estimator; the subject's state is left as it is."""
    machine = subject.parts.machine
    exacts = [candidate.exact(group, machine) for group in subject.groups]
    rows = []
    for one in options:
        try:
            built = candidate.build(one, machine)
            found = accuracy(built, subject.groups, exacts, one.draws)
        except UserError as error:
            rows.append(Row(one.label, reason=str(error)))
            continue
        reason = NOTHING if found.relative_norm == 0 else ""
        rows.append(Row(one.label, found, *_cost(built, subject, diagnosis.repeats), reason))
    return rows


def _cost(built: Candidate, subject: Subject, repeats: int) -> tuple[float, int | None]:
    group, device = subject.groups[0], subject.parts.machine.device

    def step() -> object:
        return built.estimate(group, generator("diagnose", "cost"))

    def one() -> object:
        return built.estimate(group[:1], generator("diagnose", "cost"))

    spent = milliseconds(step, repeats, device)
    if device.type == "cpu" and spent / len(group) > 1000 * LONGEST:
        return spent, None
    return spent, peak_memory(one, device)


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Head and rows as text, without the reasons; columns in which no row says anything are left out."""
    names = [name for name in COLUMNS if name != "reason"]
    shown = [name for name in names if any(COLUMNS[name](row) is not None for row in rows)]
    head = [HEADS.get(name, name) for name in shown]
    return [head, *([_text(COLUMNS[name](row)) for name in shown] for row in rows)]


def summary(problems: Mapping[str, Sequence[Row]]) -> list[list[str]]:
    """The short form: all rows of all problems with the columns that decide; empty rows are left out."""
    lines = [["problem", "estimator", "cosine", "bias", "ms", "peak MiB"]]
    for problem, rows in problems.items():
        for row in rows:
            if row.accuracy is None:
                continue
            values = (row.accuracy.cosine, row.milliseconds, COLUMNS["peak_mib"](row))
            cosine, spent, peak = map(_text, values)
            bias = _text(row.accuracy.bias)
            if row.accuracy.draws > 1:
                bias += f" (s.e. {_text(row.accuracy.floor)})"
            lines.append([problem, row.label, cosine, bias, spent, peak])
    return lines


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why rows are empty or zero, one line each."""
    return [f"- {row.label}: {row.reason.removeprefix(f'{row.label}: ')}" for row in rows if row.reason]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """The cells in columns for a terminal: the first to the left, others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The cells as a table of markdown."""
    head, *rows = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])
