"""`metalearn replicate`: a recipe's stages, controls and seeds as one resumable command, then its report."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metalearn.compose import options, recompose
from metalearn.config import required, typed
from metalearn.launch import checked
from metalearn.registry import UserError, closest
from metalearn.report.plan import check
from metalearn.workers import Pool

SEEDS = [0, 1, 2]  # of a recipe that has no plan


@dataclass
class StageOptions:
    """One run of a plan, repeated for each seed; `{other}` in an override is that stage's run directory."""

    recipe: str = required()
    overrides: list[str] = field(default_factory=list)


@dataclass
class TableOptions:
    """The table of a plan. The first row is held against the best of the others, or as `claims` says."""

    metric: str = required()
    goal: str = required()
    unit: str = required()
    rows: dict[str, str] = required()  # contender: stage
    claims: dict[str, list[str]] = field(
        default_factory=dict
    )  # what is equal: contenders held against each other


@dataclass
class Plan:
    """What `replicate` makes of one recipe."""

    family: str = required()
    seeds: list[int] = required()
    stages: dict[str, StageOptions] = required()
    table: TableOptions = required()
    figures: list[dict[str, Any]] = field(default_factory=list)
    name: str = ""


Key = tuple[str, str, int]  # plan, stage, seed


class Job(NamedTuple):
    """One run of one stage with one seed."""

    plan: str
    stage: str
    seed: int
    folder: Path
    overrides: list[str]
    needs: list[str]  # stages whose run with the same seed must have finished

    @property
    def key(self) -> Key:
        return self.plan, self.stage, self.seed


class Outcome(NamedTuple):
    """How a job ended."""

    state: str  # finished, failed, diverged, interrupted, skipped
    message: str
    seconds: float


def replicate(
    names: Sequence[str], overrides: Sequence[str], seeds: list[int] | None, jobs: int | None, runs: Path
) -> int:
    """Run every plan to its end and print its table; 0 if all runs finished, else 1."""
    _refuse(overrides)
    if seeds and len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: got {','.join(map(str, seeds))}, must be different numbers")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: got {jobs}, must be at least 1")
    plans = [plan for name in names for plan in load(name, seeds)]
    if not plans:
        raise UserError("replicate: name a recipe, e.g. quickstart; metalearn list recipes shows all")
    everything = [job for plan in plans for job in _jobs(plan, overrides, runs)]
    for job in everything:
        checked(job.overrides)  # a mistake in any of them ends here, before anything has run
    started, workers = time.monotonic(), jobs or _default_jobs()
    print(
        f"{len(everything)} runs, {workers} at a time, in {', '.join(str(runs / name) for name in names)}",
        flush=True,
    )
    outcomes = _run_all(everything, workers)
    _report(names, plans, everything, runs, time.monotonic() - started)
    bad = [key for key, outcome in outcomes.items() if outcome.state != "finished"]
    if bad:
        print(f"\n{len(bad)} of {len(everything)} runs did not finish; the same command tries them again")
    return 1 if bad else 0


def _refuse(overrides: Sequence[str]) -> None:
    """Overrides of what the plan itself sets."""
    instead = {"seed": "--seeds", "runs": "--runs", "run_dir": "--runs", "recipe": "NAME", "name": "NAME"}
    for line in overrides:
        key = line.partition("=")[0].lstrip("+~")
        if key in instead:
            raise UserError(f"replicate: {line} is set by the plan for each of its runs; use {instead[key]}")


def load(name: str, seeds: list[int] | None = None) -> list[Plan]:
    """The plans of a recipe: its own, those that it includes, or a plain run over seeds. Raises UserError."""
    if name not in options("recipe"):
        raise UserError(
            f"no recipe is called {name!r}; choose one of: {', '.join(closest(name, options('recipe')))}"
        )
    block = OmegaConf.to_container(recompose([f"recipe={name}"]), resolve=False)
    assert isinstance(block, dict)
    values = block["replicate"]
    if values is None:
        return [_over_seeds(name, seeds or SEEDS)]
    if "include" in values:
        return [plan for part in values["include"] for plan in load(part, seeds)]
    plan: Plan = typed(Plan, {**values, "name": name}, "replicate.")
    plan.seeds = seeds or plan.seeds
    check(plan)
    return [plan]


def _over_seeds(name: str, seeds: list[int]) -> Plan:
    """A recipe without a plan of its own: the same run with each seed, held against its paper alone."""
    config = checked([f"recipe={name}"])
    metric = config.paper.metric if config.paper else config.train.monitor
    if metric is None:
        raise UserError(f"recipe {name}: names no metric to report; set paper.metric or train.monitor")
    unit = config.paper.unit if config.paper else ""
    table = TableOptions(metric, config.train.goal, unit, {name.rpartition("/")[2]: "run"})
    return Plan(config.method.name, seeds, {"run": StageOptions(name)}, table, name=name)


def _jobs(plan: Plan, overrides: Sequence[str], runs: Path) -> list[Job]:
    jobs = []
    for stage, options_ in plan.stages.items():
        for seed in plan.seeds:
            folders = {name: runs / plan.name / f"{name}_seed{seed}" for name in plan.stages}
            lines = [
                f"recipe={options_.recipe}",
                f"name={plan.name}",
                *(_filled(line, folders) for line in options_.overrides),
                f"seed={seed}",
                f"run_dir={_quoted(str(folders[stage]))}",
                "log.progress=false",
                "machine.threads=1",
                *overrides,
            ]
            needs = [
                name for name in plan.stages if any(f"{{{name}}}" in line for line in options_.overrides)
            ]
            jobs.append(Job(plan.name, stage, seed, folders[stage], lines, needs))
    return jobs


def _filled(line: str, folders: dict[str, Path]) -> str:
    if "{" not in line:
        return line
    key, _, value = line.partition("=")
    try:
        return f"{key}={_quoted(value.format(**folders))}"
    except KeyError as error:
        allowed = ", ".join(folders)
        raise UserError(
            f"replicate.stages: {line!r} names stage {error}, which is not one of: {allowed}"
        ) from None


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _default_jobs() -> int:
    return 1 if shutil.which("nvidia-smi") else len(os.sched_getaffinity(0))


class _StopError(Exception):
    """SIGTERM reached the parent."""


def _run_all(jobs: list[Job], workers: int) -> dict[Key, Outcome]:
    def stop(*_: Any) -> None:
        raise _StopError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with Pool(min(workers, len(jobs)), _work) as pool:
            return _schedule(jobs, pool)
    except (KeyboardInterrupt, _StopError) as error:
        stopped = UserError("stopped after a checkpoint of every run; the same command goes on from there")
        stopped.exit_code = 143 if isinstance(error, _StopError) else 130
        raise stopped from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _schedule(jobs: list[Job], pool: Pool) -> dict[Key, Outcome]:
    outcomes: dict[Key, Outcome] = {}
    waiting = list(jobs)

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.key] = outcome
        place = f"[{len(outcomes):>{len(str(len(jobs)))}}/{len(jobs)}]"
        detail = f": {outcome.message}" if outcome.message else ""
        print(
            f"{place} {job.plan} · {job.stage} · seed {job.seed}"
            f" · {outcome.state} in {outcome.seconds:.0f} s{detail}",
            flush=True,
        )

    while waiting or pool.busy:
        for job in list(waiting):
            before = [outcomes.get((job.plan, need, job.seed)) for need in job.needs]
            if any(outcome and outcome.state != "finished" for outcome in before):
                waiting.remove(job)
                end(job, Outcome("skipped", f"needs {', '.join(job.needs)}", 0.0))
            elif all(before) and not pool.full:
                waiting.remove(job)
                pool.start(job, job.overrides)
        for job, outcome in pool.ended() if pool.busy else ():
            end(job, outcome or Outcome("failed", "its process was killed or crashed", 0.0))
    return outcomes


def _work(overrides: list[str]) -> Outcome:
    """One run in a worker."""
    from metalearn.cli import register_all
    from metalearn.launch import run_one

    register_all()
    started = time.monotonic()

    def ended(state: str, message: str = "") -> Outcome:
        return Outcome(state, message, time.monotonic() - started)

    try:
        run_one(checked(overrides), ["metalearn", "train", *overrides])
        return ended("finished")
    except UserError as error:
        return ended(getattr(error, "state", "failed"), str(error))
    except SystemExit:
        return ended("interrupted")
    except Exception as error:  # a defect of ours: the other runs go on
        return ended("failed", f"{type(error).__name__}: {error}")


def _report(names: Sequence[str], plans: list[Plan], jobs: list[Job], runs: Path, seconds: float) -> None:
    from metalearn import report

    def folders(plan: Plan) -> dict[str, dict[int, Path]]:
        return {
            stage: {job.seed: job.folder for job in jobs if (job.plan, job.stage) == (plan.name, stage)}
            for stage in plan.stages
        }

    for name in names:
        mine = [plan for plan in plans if plan.name == name or plan.name in _included(name)]
        report.combine(name, [(plan, folders(plan)) for plan in mine], runs / name, seconds)


def _included(name: str) -> list[str]:
    block = OmegaConf.to_container(recompose([f"recipe={name}"]), resolve=False)
    assert isinstance(block, dict)
    return block["replicate"].get("include", [])
