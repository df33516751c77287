"""`metalearn replicate`: a recipe's stages, controls and seeds as one resumable command, then its report."""

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metalearn.compose import options, recompose
from metalearn.config import required, typed
from metalearn.launch import checked
from metalearn.registry import UserError, closest
from metalearn.report.plan import check


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


class Job(NamedTuple):
    """One run of one stage with one seed."""

    plan: str
    stage: str
    seed: int
    folder: Path
    overrides: list[str]
    needs: list[str]  # stages whose run with the same seed must have finished

    @property
    def key(self) -> tuple[str, str, int]:
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
    plans = [plan for name in names for plan in load(name, seeds)]
    if not plans:
        raise UserError("replicate: name a recipe, e.g. quickstart; metalearn list recipes shows all")
    everything = [job for plan in plans for job in _jobs(plan, overrides, runs)]
    for job in everything:
        checked(job.overrides)  # a mistake in any of them ends here, before anything has run
    started = time.monotonic()
    outcomes = _run_all(everything, jobs or _default_jobs())
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
    """The plans of a recipe: its own, or those that it includes. Raises UserError."""
    if name not in options("recipe"):
        raise UserError(
            f"no recipe is called {name!r}; choose one of: {', '.join(closest(name, options('recipe')))}"
        )
    block = OmegaConf.to_container(recompose([f"recipe={name}"]), resolve=False)
    assert isinstance(block, dict)
    values = block["replicate"]
    if values is None:
        raise UserError(f"recipe {name} is a single run, with no plan: metalearn train recipe={name}")
    if "include" in values:
        return [plan for part in values["include"] for plan in load(part, seeds)]
    plan: Plan = typed(Plan, {**values, "name": name}, "replicate.")
    plan.seeds = seeds or plan.seeds
    check(plan)
    return [plan]


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


def _run_all(jobs: list[Job], workers: int) -> dict[tuple[str, str, int], Outcome]:
    def stop(*_: Any) -> None:
        raise _StopError

    before = signal.signal(signal.SIGTERM, stop)
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_worker, initargs=(os.getpid(),)
    )
    try:
        return _schedule(jobs, executor)
    except (KeyboardInterrupt, _StopError) as error:
        for child in multiprocessing.active_children():
            child.terminate()
        stopped = UserError("stopped after a checkpoint of every run; the same command goes on from there")
        stopped.exit_code = 143 if isinstance(error, _StopError) else 130
        raise stopped from None
    finally:
        executor.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def _schedule(jobs: list[Job], executor: ProcessPoolExecutor) -> dict[tuple[str, str, int], Outcome]:
    outcomes: dict[tuple[str, str, int], Outcome] = {}
    waiting, running = list(jobs), dict[Future[Outcome], Job]()

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.key] = outcome
        place = f"[{len(outcomes):>{len(str(len(jobs)))}}/{len(jobs)}]"
        detail = f": {outcome.message}" if outcome.message else ""
        print(
            f"{place} {job.plan} · {job.stage} · seed {job.seed}"
            f" · {outcome.state} in {outcome.seconds:.0f} s{detail}",
            flush=True,
        )

    while waiting or running:
        for job in list(waiting):
            before = [outcomes.get((job.plan, need, job.seed)) for need in job.needs]
            if any(outcome and outcome.state != "finished" for outcome in before):
                waiting.remove(job)
                end(job, Outcome("skipped", f"needs {', '.join(job.needs)}", 0.0))
            elif all(before):
                waiting.remove(job)
                running[executor.submit(_work, job.overrides)] = job
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            end(running.pop(future), _outcome(future))
    return outcomes


def _outcome(future: "Future[Outcome]") -> Outcome:
    try:
        return future.result()
    except Exception as error:  # a worker that was killed, or a defect of ours: the others go on
        return Outcome("failed", f"{type(error).__name__}: {error}".splitlines()[0], 0.0)


def _worker(parent: int) -> None:
    """Make a worker that only its parent stops, and that never outlives it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.setsid()  # Ctrl-C on the terminal reaches the parent, which tells the workers once
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _work(overrides: list[str]) -> Outcome:
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
