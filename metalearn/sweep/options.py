"""What `sweep=NAME` and `sweep.KEY=VALUE` may say."""

import re
from dataclasses import dataclass, field
from typing import Any

from metalearn.config import checked, choice, number, required
from metalearn.registry import UserError, closest


@dataclass
class SweepOptions:
    """What every strategy takes."""

    strategy: str = required()
    name: str | None = required()  # of the sweep and its folder; null: a digest of its definition
    params: dict[str, Any] = required()  # what is swept, as on the command line, which has the last word
    seeds: list[int] | None = required()  # each point runs with each of them; null: the seed of the run
    metric: str | None = required()  # of the evaluation; null: train.monitor
    goal: str | None = required()  # min or max; null: train.goal
    value: str = choice("last", "best")  # of the metric in a run
    retries: int = number(at_least=0)  # of a failed run within one launch
    measure: bool = required()  # --dry-run times a few steps where no earlier run tells the cost


@dataclass
class GridOptions(SweepOptions):
    """Every combination of values."""


@dataclass
class RandomOptions(SweepOptions):
    """Points drawn one by one, none twice."""

    trials: int = number(at_least=1)
    seed: int = number(at_least=0)  # of the draws


@dataclass
class BayesianOptions(RandomOptions):
    """Points drawn by a model of what is known so far."""

    population: int = number(at_least=1)  # points drawn at random before the model is asked
    storage: str = choice(
        "sqlite", "journal"
    )  # of the study: journal where a network's file system locks badly


@dataclass
class HalvingOptions(SweepOptions):
    """The best 1/eta of the points go on at each rung, for eta times the steps."""

    seed: int = number(at_least=0)  # of the draws
    population: int = number(at_least=2)
    eta: int = number(at_least=2)
    rungs: int | None = field(default=None, metadata={"at_least": 2})
    minimum: int | None = field(default=None, metadata={"at_least": 1})  # steps of the first rung


@dataclass
class HyperbandOptions(SweepOptions):
    """Brackets of successive halving."""

    seed: int = number(at_least=0)  # of the draws
    population: int | None = field(
        default=None, metadata={"at_least": 2}
    )  # of the first bracket; null: eta^s
    eta: int = number(at_least=2)
    minimum: int | None = field(default=None, metadata={"at_least": 1})  # null: train.evaluate_every


STRATEGIES: dict[str, type[SweepOptions]] = {
    "grid": GridOptions,
    "random": RandomOptions,
    "tpe": BayesianOptions,
    "gp": BayesianOptions,
    "halving": HalvingOptions,
    "hyperband": HyperbandOptions,
}


def options_of(values: dict[str, Any]) -> SweepOptions:
    """The checked `sweep` block of a configuration. Raises UserError."""
    strategy = str(values.get("strategy"))
    if strategy not in STRATEGIES:
        allowed = ", ".join(closest(strategy, list(STRATEGIES)))
        raise UserError(f"sweep.strategy: got {strategy!r}, must be one of: {allowed}")
    options = checked(STRATEGIES[strategy], values, "sweep.")
    if options.goal not in (None, "min", "max"):
        raise UserError(f"sweep.goal: got {options.goal!r}, must be min, max or null (train.goal)")
    if options.name is not None and not re.fullmatch(r"[\w=+-][\w.=+-]*", options.name):
        raise UserError(f"sweep.name: got {options.name!r}, must be letters, digits and any of . _ - = +")
    if options.seeds is not None and (not options.seeds or len(set(options.seeds)) < len(options.seeds)):
        raise UserError(f"sweep.seeds: got {options.seeds}, must be different numbers, or null")
    if options.metric is not None and options.metric.startswith("test/"):
        raise UserError(
            f"sweep.metric: got {options.metric}; nothing is tuned on test data, choose a metric of the "
            "validation split, e.g. valid/loss, and read the test figures of the best trial at the end"
        )
    if isinstance(options, HalvingOptions) and (options.rungs is None) == (options.minimum is None):
        raise UserError("sweep: halving takes sweep.rungs or sweep.minimum; set one, and the other to null")
    return options
