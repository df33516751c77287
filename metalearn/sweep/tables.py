"""What a sweep leaves to read: summary.json, summary.csv, summary.md, and a table on the terminal."""

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence

from metalearn.sweep.definition import Sweep
from metalearn.sweep.trials import Trial, plain, ranked
from metalearn.train.files import write_text

SHOWN = 10  # trials on the terminal
HEADER = ("trial", "overrides", "value", "runs", "steps", "time")


def write(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Replace the three files in the sweep's folder."""
    best = ranked(list(trials), sweep.searched)
    content = {
        "name": sweep.id,
        "strategy": sweep.options.strategy,
        **sweep.searched._asdict(),
        "seeds": list(sweep.seeds),
        "trials": [plain(trial) for trial in best],
    }
    write_text(sweep.folder / "summary.json", json.dumps(content, indent=1) + "\n")
    write_text(sweep.folder / "summary.csv", _csv(sweep, best))
    write_text(sweep.folder / "summary.md", _markdown(sweep, best))


def shown(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """The table for the terminal, the best trial's command, and what failed."""
    best = ranked(list(trials), sweep.searched)
    rows = [HEADER, *(_row(sweep, trial) for trial in best[:SHOWN])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if len(best) > SHOWN:
        lines.append(f"... {len(best) - SHOWN} more in {sweep.folder / 'summary.md'}")
    if best and best[0].value is not None and math.isfinite(best[0].value):
        lines += ["", f"best trial again: {shlex.join(sweep.rerun(best[0].point, sweep.seeds[0]))}"]
        lines.append(f"its runs: {', '.join(str(sweep.run_folder(best[0].point, s)) for s in sweep.seeds)}")
    return "\n".join(["", *lines, f"all trials: {sweep.folder / 'summary.md'}"])


def failures(sweep: Sweep, trials: Sequence[Trial]) -> list[str]:
    """A line for each run that has no end: its overrides and the reason."""
    return [
        f"{shlex.join([*trial.point, f'seed={seed}'])}: {result.message or result.state}"
        for trial in trials
        for seed in sweep.seeds
        if not (result := trial.result(seed)).settled
    ]


def _row(sweep: Sweep, trial: Trial) -> tuple[str, ...]:
    ended = sum(trial.result(seed).settled for seed in sweep.seeds)
    runs = trial.state if len(sweep.seeds) == 1 else f"{ended}/{len(sweep.seeds)} {trial.state}"
    return (
        trial.id,
        shlex.join(trial.point) or "as it is",
        _value(trial),
        runs,
        str(trial.step),
        f"{trial.seconds:.0f} s",
    )


def _value(trial: Trial) -> str:
    if trial.value is None:
        return "-"
    if not math.isfinite(trial.value):
        return "diverged"
    spread = "" if trial.deviation is None else f" +- {trial.deviation:.2g}"
    return f"{trial.value:.5g}{spread}"


def _markdown(sweep: Sweep, best: Sequence[Trial]) -> str:
    searched = sweep.searched
    lines = [
        f"# {sweep.base.name}: sweep {sweep.id}",
        "",
        f"{sweep.options.strategy}; value: {searched.value} {searched.metric} ({searched.goal}), mean +- "
        f"standard deviation over seeds {', '.join(map(str, sweep.seeds))}.",
        "",
        f"| {' | '.join(HEADER)} | again |",
        "|" + " --- |" * (len(HEADER) + 1),
    ]
    for trial in best:
        again = shlex.join(sweep.rerun(trial.point, sweep.seeds[0]))
        cells = [cell.replace("|", "\\|") for cell in (*_row(sweep, trial), f"`{again}`")]
        lines.append(f"| {' | '.join(cells)} |")
    missing = failures(sweep, best)
    if missing:
        lines += ["", "Without an end:", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


def _csv(sweep: Sweep, best: Sequence[Trial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [dimension.key for dimension in sweep.space]
    writer.writerow(["trial", "id", "seed", *keys, "state", "value", "step", "seconds", "folder", "message"])
    for trial in best:
        swept = [override.partition("=")[2] for override in trial.point]
        for seed in sweep.seeds:
            result = trial.result(seed)
            value = "" if result.value is None else result.value
            ended = [result.state, value, result.step, result.seconds or ""]
            folder = sweep.run_folder(trial.point, seed)
            writer.writerow([trial.number, trial.id, seed, *swept, *ended, folder, result.message])
    return text.getvalue()
