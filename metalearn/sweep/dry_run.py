"""`--dry-run`: what a sweep would run and cost. Nothing is launched or written."""

import shlex
from collections import Counter

from metalearn.registry import UserError
from metalearn.sweep.build import build_strategy
from metalearn.sweep.cost import cost, measure
from metalearn.sweep.definition import Sweep
from metalearn.sweep.folder import check_definition
from metalearn.sweep.jobs import look
from metalearn.sweep.listed import draws
from metalearn.sweep.strategy import Ask, Strategy
from metalearn.train.lock import Lock

UNKNOWN = "unknown: no earlier run; run one job first or sweep.measure=true"


def told(sweep: Sweep) -> str:
    """The jobs with their states, the strategy's plan, and the cost of what is left. Raises UserError."""
    check_definition(sweep)
    strategy = build_strategy(sweep, sweep.folder, reading=True)
    return "\n".join(
        [
            f"sweep {sweep.folder}",
            *strategy.plan(),
            f"seeds {', '.join(map(str, sweep.seeds))}: {strategy.total * len(sweep.seeds)} jobs",
            *_jobs(sweep, strategy),
            f"cost: {_cost(sweep, strategy)}",
            *_held(sweep),
        ]
    )


def _jobs(sweep: Sweep, strategy: Strategy) -> list[str]:
    lines, states = [], Counter[str]()
    for ask in strategy.known():
        for seed in sweep.seeds:
            job = sweep.job(ask.point, seed)
            found = look(job.folder, sweep.searched, ask.until)
            states[found.state] += 1
            step = f" at step {found.step}" if found.step else ""
            lines.append(f"  {job}  {found.state}{step}  {shlex.join(ask.point) or 'as it is'}")
    said = ", ".join(f"{count} {state}" for state, count in states.items())
    return [*lines, f"known so far: {said}"] if lines else ["no job is known yet"]


def _cost(sweep: Sweep, strategy: Strategy) -> str:
    steps = sweep.base.train.steps
    everything = strategy.steps(steps) * len(sweep.seeds)
    done = sum(min(look(folder, sweep.searched, None).step, steps) for folder in sweep.folder.glob("*_seed*"))
    left = max(everything - done, 0)
    found = cost(sweep)
    if found is None and sweep.options.measure:
        found = measure(sweep, _first(sweep, strategy))
    if found is None:
        return f"{left:.0f} steps left, time {UNKNOWN}"
    return (
        f"{left:.0f} steps left at {found.seconds:.3g} s: {clock(left * found.seconds)} one job at a time "
        f"(from {found.source})"
    )


def _first(sweep: Sweep, strategy: Strategy) -> Ask:
    return next(iter(strategy.known()), Ask(0, draws(sweep.space, 0, 1)[0]))


def _held(sweep: Sweep) -> list[str]:
    """Whether a launch is under way, whose running jobs look interrupted."""
    if not (sweep.folder / "lock").exists():
        return []
    try:
        Lock(sweep.folder).release()
    except UserError as error:
        return [f"under way: {str(error).partition(';')[0]}"]
    return []


def clock(seconds: float) -> str:
    """A time as one would say it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
