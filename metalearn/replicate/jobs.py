"""The runs and selections that a plan comes to, each with its folder and what it waits for."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.registry import UserError
from metalearn.replicate.plan import Plan, SelectOptions


class Choice(NamedTuple):
    """What a selection is made from."""

    options: SelectOptions
    candidates: dict[int, Path]  # run directories by seed
    dependents: tuple[Path, ...]  # run directories of what builds on it


class Job(NamedTuple):
    """One run of one stage, or one selection."""

    plan: str
    stage: str
    seed: int | None  # None: a selection of one run in all
    folder: Path
    overrides: list[str]
    needs: list[Path]  # folders of the jobs before it
    choice: Choice | None = None

    def __str__(self) -> str:
        return f"{self.plan} · {self.stage}" + ("" if self.seed is None else f" · seed {self.seed}")


def jobs(plan: Plan, overrides: Sequence[str], runs: Path) -> list[Job]:
    """All jobs of a plan, stage by stage; `overrides` have the last word."""
    return [
        _selection(plan, stage, seed, runs)
        if options.select
        else _run(plan, stage, int(seed or 0), overrides, runs)
        for stage, options in plan.stages.items()
        for seed in plan.seeds_of(stage)
    ]


def folder(plan: Plan, stage: str, seed: int | None, runs: Path) -> Path:
    """Where a stage's run with this seed lies, or its selection."""
    if plan.seeds_of(stage) == [None]:
        seed = None
    return runs / plan.place / (stage if seed is None else f"{stage}_seed{seed}")


def merged(everything: Iterable[Job]) -> list[Job]:
    """Each folder's job once: plans of one table share runs. Raises UserError if they disagree."""
    found: dict[Path, Job] = {}
    for job in everything:
        before = found.setdefault(job.folder, job)
        if before.overrides != job.overrides or _candidates(before) != _candidates(job):
            raise UserError(
                f"{job.folder}: {before.plan} and {job.plan} want different runs there; give one of them "
                "another replicate.folder"
            )
        if before.choice and job.choice:
            both = tuple(dict.fromkeys((*before.choice.dependents, *job.choice.dependents)))
            found[job.folder] = before._replace(choice=before.choice._replace(dependents=both))
    return list(found.values())


def _candidates(job: Job) -> dict[int, Path]:
    return job.choice.candidates if job.choice else {}


def _run(plan: Plan, stage: str, seed: int, overrides: Sequence[str], runs: Path) -> Job:
    options, needs = plan.stages[stage], plan.needs(stage)
    places = {name: folder(plan, name, seed, runs) for name in needs}
    mine = folder(plan, stage, seed, runs)
    lines = [
        f"recipe={options.recipe}",
        f"name={plan.place}",
        *(_filled(line, places) for line in options.overrides),
        f"seed={seed}",
        f"run_dir={_quoted(str(mine))}",
        "log.progress=false",
        "machine.threads=1",
        *overrides,
    ]
    return Job(plan.name, stage, seed, mine, _last_words(lines), list(places.values()))


def _selection(plan: Plan, stage: str, seed: int | None, runs: Path) -> Job:
    select = plan.stages[stage].select
    assert select is not None
    candidates = {number: folder(plan, select.stage, number, runs) for number in plan.candidates(stage, seed)}
    dependents = tuple(
        folder(plan, name, other, runs)
        for name in plan.stages
        if stage in plan.needs(name)
        for other in plan.seeds_of(name)
        if seed is None or other == seed
    )
    choice = Choice(select, candidates, dependents)
    return Job(plan.name, stage, seed, folder(plan, stage, seed, runs), [], list(candidates.values()), choice)


def _filled(line: str, places: dict[str, Path]) -> str:
    if "{" not in line:
        return line
    key, _, value = line.partition("=")
    return f"{key}={_quoted(value.format(**places))}"


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _last_words(lines: list[str]) -> list[str]:
    """Of several overrides of one key the last: Hydra takes a group but once."""
    last = {line.partition("=")[0]: line for line in lines}
    return [line for line in lines if last[line.partition("=")[0]] is line]
