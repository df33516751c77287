"""The command: load plans, check them, run what is not done, report."""

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from metalearn.launch import checked
from metalearn.registry import UserError
from metalearn.replicate.cards import documents, library, listing, status
from metalearn.replicate.cards.making import folders
from metalearn.replicate.check import check_run
from metalearn.replicate.jobs import Job, jobs, merged
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
        raise UserError(
            "replicate: NAME is missing, e.g. quickstart; metalearn list recipes shows all, --list results"
        )
    everything = merged(
        job for group in plans.values() for plan in group for job in _checked(plan, overrides, runs)
    )
    started, workers = time.monotonic(), parallel or _default_jobs()
    places = {str(_home(name, group, runs)): None for name, group in plans.items()}
    count = sum(job.choice is None for job in everything)
    print(f"{count} runs, {workers} at a time, in {', '.join(places)}", flush=True)
    distinct = list({plan.name: plan for group in plans.values() for plan in group}.values())
    for plan in distinct:
        library.begin(plan, overrides, runs)
    try:
        outcomes = run_all(everything, workers)
    finally:
        for plan in distinct:
            _card(plan, overrides, runs)
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

    report.combine(name, [(plan, folders(plan, runs)) for plan in plans], _home(name, plans, runs), seconds)


def _card(plan: Plan, overrides: Sequence[str], runs: Path) -> None:
    """Leave the plan's card, however far it came; what is in its way costs no run."""
    try:
        library.write(plan, overrides, runs)
    except (UserError, OSError) as error:
        print(f"no card of {plan.name}: {error}", flush=True)


def tell(options: argparse.Namespace, names: Sequence[str], overrides: Sequence[str]) -> int:
    """`--list`, `--status`, `--collect` and `--docs`: what replications came to; they run nothing."""
    tier, rest = _tier(overrides)
    if rest or options.seeds or options.jobs:
        came = ", ".join(
            [*rest, *(["--seeds"] if options.seeds else []), *(["--jobs"] if options.jobs else [])]
        )
        raise UserError(
            f"replicate: {came} is for runs; with --list, --status, --collect and --docs leave it out"
        )
    runs = Path(options.runs)
    if options.list:
        listing.show(names, runs, options.json)
    elif options.status:
        status.show(names, runs, options.json)
    elif options.collect:
        lines = library.collect(names, tier, runs, options.force)
        first = next(lines, f"--collect: nothing to collect under {runs}: no replication but of tier smoke")
        for line in (first, *lines):
            print(line, flush=True)
    else:
        for line in documents.write():
            print(line)
    return 0
