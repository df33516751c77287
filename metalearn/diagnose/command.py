"""`metalearn diagnose hypergradient`: one problem, all of them, or a training run's checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from metalearn.diagnose import config as files
from metalearn.diagnose import output, subject, table
from metalearn.diagnose.config import NUMBERS, OF_A_RUN
from metalearn.diagnose.output import Result
from metalearn.registry import UserError

OWN = ("problem", "estimators", *NUMBERS)


def diagnose(settings: Sequence[str], run: Path | None, wanted: Path | None, command: Sequence[str]) -> Path:
    """Measure, print and write what `settings` (KEY=VALUE) ask for; the folder written. Raises UserError.

    Keys of a diagnosis are `problem`, `estimators`, `situations`, `draws`, `warmup` and `repeats`; all others
    are overrides of the run, as `metalearn train` takes them.
    """
    own, overrides = _sorted(settings)
    chosen = [name for name in own.pop("estimators", "").strip("[]").split(",") if name]
    problem = own.pop("problem", None)
    if (run is None) == (problem is None):
        raise UserError(
            f"diagnose: give problem=NAME, one of {', '.join([*files.problems(), 'all'])}, or --run RUN"
        )
    if run is not None:
        results = [_of_run(run, chosen, own, overrides)]
        folder = output.make_folder(wanted, OF_A_RUN)
        _finish(results[0], folder, command)
        return folder
    return _of_problems(str(problem), chosen, own, overrides, wanted, command)


def _of_problems(
    problem: str,
    chosen: Sequence[str],
    numbers: Mapping[str, str],
    overrides: Sequence[str],
    wanted: Path | None,
    command: Sequence[str],
) -> Path:
    """One problem into `wanted`, all of them into its sub-folders with one page above them."""
    names = files.problems() if problem == "all" else [problem]
    prepared = [_prepare(name, chosen, numbers, overrides) for name in names]  # every mistake before any work
    folder = output.make_folder(wanted, problem)
    results = []
    for name, (diagnosis, config, options) in zip(names, prepared, strict=True):
        found = subject.warmed_up(config, diagnosis)
        results.append(Result(name, found, diagnosis, table.measure(found, diagnosis, options)))
        _finish(results[-1], folder / name if problem == "all" else folder, command)
    if problem == "all":
        output.write_text(folder / "diagnose.md", output.page(results, names))
    return folder


def _prepare(
    name: str, chosen: Sequence[str], numbers: Mapping[str, str], overrides: Sequence[str]
) -> tuple[files.Diagnosis, files.Config, list[files.CandidateOptions]]:
    diagnosis = files.read(name, numbers)
    config = subject.configured(diagnosis, overrides)
    return diagnosis, config, files.candidates(diagnosis, chosen, config)


def _of_run(run: Path, chosen: Sequence[str], numbers: Mapping[str, str], overrides: Sequence[str]) -> Result:
    """A run's checkpoint; estimators that do not fit are left out unless they were asked for."""
    diagnosis = files.read(OF_A_RUN, numbers)
    config = subject.stored(run, overrides)
    options = files.candidates(diagnosis, chosen, config)
    found = subject.restored(run, config, diagnosis)
    rows = table.measure(found, diagnosis, options)
    if not chosen:
        left_out = [row.label for row in rows if row.accuracy is None]
        rows = [row for row in rows if row.accuracy is not None]
        if left_out:
            _say(f"left out, for they do not fit: {', '.join(left_out)}; estimators=NAME says why")
    return Result(config.name, found, diagnosis, rows)


def _finish(result: Result, folder: Path, command: Sequence[str]) -> None:
    output.write(result, folder, command)
    lines = [table.aligned(table.cells(result.rows)), *table.reasons(result.rows)]
    _say("\n".join([result.title, "", *lines, "", str(folder), ""]))


def _say(text: str) -> None:
    from rich.console import Console

    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def _sorted(settings: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The diagnosis's own settings, and the overrides of the run."""
    own, overrides = {}, []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"diagnose: got {setting!r}, must be KEY=VALUE, e.g. problem=darts_digits")
        if key in OWN:
            own[key] = value
        else:
            overrides.append(setting)
    return own, overrides
