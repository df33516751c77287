"""Optuna's samplers: tree-structured Parzen estimators and Gaussian processes, with a study that is kept."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from metalearn.registry import UserError
from metalearn.sweep.options import BayesianOptions
from metalearn.sweep.space import Dimension, Interval, Point, Stepped
from metalearn.sweep.strategy import Ask, Strategy

FILES = {"sqlite": "study.db", "journal": "study.log"}


class Bayesian(Strategy):
    """A model of all values so far draws the next point; the first `population` points are drawn at random.

    The study holds what was asked and told. A trial without a value, because its runs were killed or failed,
    stays open there, and the next launch takes it up. The sampler's seed is a function of the trial's place,
    so that one job at a time gives the same points however often the sweep was broken off.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        options: BayesianOptions,
        goal: str,
        folder: Path,
        reading: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Clip non-finite values")  # diverged runs are as bad as the worst
        self._space, self._options = space, options
        self._distributions = {dimension.key: _distribution(dimension) for dimension in space}
        self._study = _study(folder, options, goal, reading)
        self._trials: list[FrozenTrial] = []
        self._again = self._earlier(reading)
        self._told = {trial.number for trial in self._trials if trial.state == TrialState.COMPLETE}

    @property
    def total(self) -> int:
        return max(self._options.trials, len(self._trials))

    def steps(self, whole: int) -> float:
        return self.total * whole

    def ask(self) -> Ask | None:
        trial = next(self._again, None)
        if trial is None:
            if len(self._trials) >= self._options.trials:
                return None
            trial = self._new()
            self._trials.append(trial)
        return self._asked(trial)

    def tell(self, ask: Ask, value: float | None) -> None:
        if value is not None and ask.number not in self._told:
            self._study.tell(ask.number, value)
            self._told.add(ask.number)

    def known(self) -> list[Ask]:
        return [self._asked(trial) for trial in self._trials]

    def plan(self) -> list[str]:
        options = self._options
        return [
            f"{options.strategy}: {options.trials} points, {len(self._told)} of them done; the first "
            f"{options.population} at random, then by the model",
            *(f"  {dimension.key}={dimension.text}" for dimension in self._space),
        ]

    def _earlier(self, reading: bool) -> Iterator[FrozenTrial]:
        """The trials of earlier launches; one that was killed before its point was complete is given up."""
        for trial in self._study.get_trials(states=(TrialState.COMPLETE, TrialState.RUNNING)):
            if trial.params.keys() == self._distributions.keys():
                self._trials.append(trial)
            elif not reading:
                self._study.tell(trial.number, state=TrialState.FAIL)
        return iter(list(self._trials))

    def _new(self) -> FrozenTrial:
        place = len(self._trials)
        self._study.sampler = self._sampler(place)
        trial = self._study.ask(self._distributions)
        return self._study.get_trials(deepcopy=False)[trial.number]

    def _sampler(self, place: int) -> optuna.samplers.BaseSampler:
        digest = hashlib.sha256(f"{self._options.seed}/{place}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if place < self._options.population:
            return optuna.samplers.RandomSampler(seed=seed)
        if self._options.strategy == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, constant_liar=True)

    def _asked(self, trial: FrozenTrial) -> Ask:
        point: Point = tuple(
            dimension.override(_said(dimension, trial.params[dimension.key])) for dimension in self._space
        )
        return Ask(trial.number, point)


def _study(folder: Path, options: BayesianOptions, goal: str, reading: bool) -> optuna.Study:
    other = next(name for kind, name in FILES.items() if kind != options.storage)
    if (folder / other).exists():
        raise UserError(
            f"sweep.storage: got {options.storage}, but the study is in {folder / other}; take the storage "
            "that the sweep was started with"
        )
    path = folder / FILES[options.storage]
    try:
        return optuna.create_study(
            storage=None if reading and not path.exists() else _storage(path, options.storage),
            study_name="sweep",
            direction="minimize" if goal == "min" else "maximize",
            load_if_exists=True,
        )
    except Exception as error:  # each storage has kinds of its own
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: cannot be opened as Optuna's study ({type(error).__name__}: {reason}); if it is "
            "damaged, delete it and run the same command again: points that come again keep their runs"
        ) from None


def _storage(path: Path, kind: str) -> Any:
    if kind == "sqlite":
        return f"sqlite:///{path.resolve()}"
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Interval):
        if dimension.whole:
            return IntDistribution(round(dimension.low), round(dimension.high), log=dimension.log)
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if isinstance(dimension, Stepped):
        numbers = dimension.low, dimension.high, dimension.step
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(int(dimension.low), int(dimension.high), step=int(dimension.step))
        return FloatDistribution(dimension.low, dimension.high, step=dimension.step)
    return CategoricalDistribution(dimension.values() or ())


def _said(dimension: Dimension, value: Any) -> str:
    return dimension.said(value) if isinstance(dimension, Interval | Stepped) else str(value)
