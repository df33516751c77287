"""Drives a sweep: asks the strategy, gives runs to the executor, tells their values."""

import math
import shlex
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from metalearn.registry import UserError
from metalearn.sweep.definition import Sweep
from metalearn.sweep.executor import Executor, Job
from metalearn.sweep.jobs import Result, look, metrics_of
from metalearn.sweep.strategy import Ask, Strategy
from metalearn.sweep.trials import Trial
from metalearn.work import Outcome

SAVED_EVERY = 1.0  # seconds: a thousand short jobs do not wait for the disk


class Run(NamedTuple):
    """One run that is to be done."""

    trial: Trial
    seed: int
    until: int | None  # the step at which it stops; None: its end
    job: Job


class Engine:
    """One launch of a sweep. What is on the disk counts: a run that is done is not run again."""

    def __init__(
        self,
        sweep: Sweep,
        strategy: Strategy,
        save: Callable[[list[Trial]], None],
        say: Callable[[str], None],
    ) -> None:
        self._sweep, self._strategy, self._save, self._say = sweep, strategy, save, say
        self._trials: dict[int, Trial] = {}
        self._asks: dict[int, Ask] = {}  # those not told yet, by the trial's number
        self._waiting: deque[Run] = deque()
        self._running: dict[Path, Run] = {}
        self._sharing: dict[Path, list[Run]] = {}  # points drawn twice: their runs wait for one
        self._retries: dict[Path, int] = {}
        self._done = 0

    @property
    def trials(self) -> list[Trial]:
        """In the order in which they were asked for."""
        return list(self._trials.values())

    def run(self, executor: Executor) -> None:
        """Until nothing is left to do. Raises UserError if a search has nothing to go by."""
        saved = -math.inf
        try:
            while True:
                self._fill(executor)
                if not self._running:
                    return
                for job, outcome in executor.ended():
                    self._end(self._running.pop(job.folder), outcome)
                if time.monotonic() - saved >= SAVED_EVERY:
                    self._save(self.trials)
                    saved = time.monotonic()
        finally:
            self._save(self.trials)

    def _fill(self, executor: Executor) -> None:
        while len(self._running) < executor.width:
            if not self._waiting and not self._ask():
                return
            if self._waiting:
                run = self._waiting.popleft()
                self._running[run.job.folder] = run
                executor.start(run.job)

    def _ask(self) -> bool:
        """Take up another configuration; False: there is none for now."""
        ask = self._strategy.ask()
        if ask is None:
            return False
        sweep = self._sweep
        trial = self._trials.setdefault(
            ask.number, Trial(ask.number, sweep.identity(ask.point), ask.point, sweep.seeds)
        )
        self._asks[ask.number] = ask
        for seed in sweep.seeds:
            self._begin(Run(trial, seed, ask.until, sweep.job(ask.point, seed, ask.until)))
        self._tell_if_whole(trial)
        return True

    def _begin(self, run: Run) -> None:
        folder = run.job.folder
        if folder in self._running or any(other.job.folder == folder for other in self._waiting):
            self._sharing.setdefault(folder, []).append(run)
            return
        found = look(folder, self._sweep.searched, run.until)
        if found.settled:
            run.trial.results[run.seed] = found
            self._check_value(run, found)
            self._done += 1
        else:
            self._waiting.append(run)

    def _end(self, run: Run, outcome: Outcome) -> None:
        folder = run.job.folder
        before = run.trial.results.get(run.seed)
        result = self._result(run, outcome)
        if not (result.settled or outcome.mistake) and self._again(folder, result, before):
            run.trial.results[run.seed] = result
            self._waiting.appendleft(run)
            self._report(run, result, outcome, " (trying again)")
            return
        for each in [run, *self._sharing.pop(folder, [])]:
            each.trial.results[each.seed] = result
            self._done += 1
            self._tell_if_whole(each.trial)
        self._report(run, result, outcome, "")
        self._check_value(run, result)

    def _result(self, run: Run, outcome: Outcome) -> Result:
        """What the disk says; where it knows of no end, what the executor says."""
        found = look(run.job.folder, self._sweep.searched, run.until)
        if found.settled:
            return found
        state = outcome.state if outcome.state in ("failed", "interrupted") else "failed"
        message = outcome.message or found.message or f"ended as {outcome.state}"
        return found._replace(state=state, message=message)

    def _again(self, folder: Path, result: Result, before: Result | None) -> bool:
        """Whether to try once more: an interrupted run that got on costs no retry."""
        if result.state == "interrupted" and result.step > (before.step if before else 0):
            return True
        self._retries[folder] = self._retries.get(folder, 0) + 1
        return self._retries[folder] <= self._sweep.options.retries

    def _tell_if_whole(self, trial: Trial) -> None:
        shared = (run for runs in self._sharing.values() for run in runs)
        under_way = {run.trial.number for run in (*self._waiting, *self._running.values(), *shared)}
        if trial.number in self._asks and trial.number not in under_way:
            ask = self._asks.pop(trial.number)
            trial.until = ask.until
            self._strategy.tell(ask, trial.value)

    def _check_value(self, run: Run, result: Result) -> None:
        """A search whose metric no run gives is a mistake. Raises UserError."""
        searched = self._sweep.searched
        if result.value is not None or not result.settled or not self._sweep.searches:
            return
        there = ", ".join(metrics_of(run.job.folder)) or "none"
        raise UserError(
            f"sweep.metric: got {searched.metric}, which {run.job.folder} does not give; it has: {there}"
        )

    def _report(self, run: Run, result: Result, outcome: Outcome, more: str) -> None:
        total = self._strategy.total * len(self._sweep.seeds)
        place = f"[{self._done:>{len(str(total))}}/{total}]"
        value = "" if result.value is None else f" · {self._sweep.searched.metric} {result.value:.5g}"
        step = f" at step {result.step}" if result.state in ("stopped", "interrupted") else ""
        message = f": {result.message}" if result.state in ("failed", "diverged", "interrupted") else ""
        self._say(
            f"{place} {run.job} · {shlex.join(run.trial.point) or 'as it is'} · {result.state}{step} in "
            f"{outcome.seconds:.0f} s{value}{message}{more}"
        )
