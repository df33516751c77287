"""Jobs in the order that they need each other, several at a time."""

from pathlib import Path

from metalearn.registry import UserError
from metalearn.replicate.jobs import Job
from metalearn.replicate.selection import select
from metalearn.work import Outcome, work
from metalearn.workers import Pool, stoppable

Outcomes = dict[Path, Outcome]  # by the job's folder


def run_all(jobs: list[Job], workers: int) -> Outcomes:
    """Run every job once, those that failed before again. Raises UserError when stopped by a signal."""
    with stoppable() as innermost, Pool(min(workers, len(jobs)), work) as pool, innermost():
        return _schedule(jobs, pool)


def _schedule(jobs: list[Job], pool: Pool) -> Outcomes:
    outcomes: Outcomes = {}
    waiting = list(jobs)

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.folder] = outcome
        place = f"[{len(outcomes):>{len(str(len(jobs)))}}/{len(jobs)}]"
        detail = f": {outcome.message}" if outcome.message else ""
        print(f"{place} {job} · {outcome.state} in {outcome.seconds:.0f} s{detail}", flush=True)

    while waiting or pool.busy:
        for job in list(waiting):
            if any(need not in outcomes for need in job.needs):
                continue
            ready = _without_run(job, outcomes)
            if ready is None and pool.full:
                continue
            waiting.remove(job)
            if ready is None:
                pool.start(job, job.overrides)
            else:
                end(job, ready)
        for job, outcome in pool.ended() if pool.busy else ():
            end(job, outcome or Outcome("failed", "its process was killed or crashed", 0.0))
    return outcomes


def _without_run(job: Job, outcomes: Outcomes) -> Outcome | None:
    """How a job ends that takes no process: a selection, or a run that lacks what it needs."""
    if job.choice is not None:
        try:
            return Outcome("finished", select(job.choice, job.folder), 0.0)
        except UserError as error:
            return Outcome("skipped", str(error), 0.0)
    lacking = [need.name for need in job.needs if outcomes[need].state != "finished"]
    return Outcome("skipped", f"needs {', '.join(lacking)}", 0.0) if lacking else None
