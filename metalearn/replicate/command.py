"""The command: load plans, check them, run what is not done, report."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from metalearn.launch import checked
from metalearn.registry import UserError
from metalearn.replicate.check import check_run
from metalearn.replicate.jobs import Job, folder, jobs, merged
from metalearn.replicate.plan import Plan, load
from metalearn.replicate.schedule import run_all


def replicate(
    names: Sequence[str], overrides: Sequence[str], seeds: list[int] | None, parallel: int | None, runs: Path
) -> int:
    """Run every plan to its end and print its table; 0 if all runs finished, else 1.

    `tier=NAME` among the overrides asks for a tier of the plans.
    """
    tier, overrides = _tier(overrides)
    _refuse(overrides)
    if seeds and len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: got {','.join(map(str, seeds))}, must be different numbers")
    if parallel is not None and parallel < 1:
        raise UserError(f"--jobs: got {parallel}, must be at least 1")
    plans = {name: load(name, seeds, tier) for name in names}
    if not any(plans.values()):
        raise UserError("replicate: name a recipe, e.g. quickstart; metalearn list recipes shows all")
    everything = merged(
        job for group in plans.values() for plan in group for job in _checked(plan, overrides, runs)
    )
    started, workers = time.monotonic(), parallel or _default_jobs()
    places = {str(_home(name, group, runs)): None for name, group in plans.items()}
    count = sum(job.choice is None for job in everything)
    print(f"{count} runs, {workers} at a time, in {', '.join(places)}", flush=True)
    outcomes = run_all(everything, workers)
    seconds = time.monotonic() - started
    for name, group in plans.items():
        _report(name, group, runs, seconds)
    bad = [place for place, outcome in outcomes.items() if outcome.state != "finished"]
    if bad:
        print(f"\n{len(bad)} of {len(everything)} did not finish; the same command tries them again")
    return 1 if bad else 0


def _tier(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    asked = [line.partition("=")[2] for line in overrides if line.startswith("tier=")]
    if len(set(asked)) > 1:
        raise UserError(f"tier: got {' and '.join(asked)}, must be one")
    return (asked[0] if asked else None), [line for line in overrides if not line.startswith("tier=")]


def _refuse(overrides: Sequence[str]) -> None:
    """Overrides of what the plan itself sets."""
    instead = {"seed": "--seeds", "runs": "--runs", "run_dir": "--runs", "recipe": "NAME", "name": "NAME"}
    for line in overrides:
        key = line.partition("=")[0].lstrip("+~")
        if key in instead:
            raise UserError(f"replicate: {line} is set by the plan for each of its runs; use {instead[key]}")


def _checked(plan: Plan, overrides: Sequence[str], runs: Path) -> list[Job]:
    """The plan's jobs. A mistake in any stage ends here, before anything has run. Raises UserError."""
    made = jobs(plan, overrides, runs)
    for stage, job in {job.stage: job for job in made if job.choice is None}.items():
        check_run(plan, stage, checked(job.overrides))
    return made


def _default_jobs() -> int:
    return 1 if shutil.which("nvidia-smi") else len(os.sched_getaffinity(0))


def _home(name: str, plans: Sequence[Plan], runs: Path) -> Path:
    """Where the report of a recipe goes: beside its tier's runs, by the recipe's own name."""
    tiers = dict.fromkeys(plan.tier for plan in plans if plan.tier)
    return runs / "/".join((name, *tiers))


def _report(name: str, plans: Sequence[Plan], runs: Path, seconds: float) -> None:
    from metalearn import report

    def folders(plan: Plan) -> dict[str, dict[int, Path]]:
        return {
            stage: {seed or 0: folder(plan, stage, seed, runs) for seed in plan.seeds_of(stage)}
            for stage in plan.stages
        }

    report.combine(name, [(plan, folders(plan)) for plan in plans], _home(name, plans, runs), seconds)
