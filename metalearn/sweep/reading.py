"""A sweep from a command line. Imports no torch."""

import contextlib
import random
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from metalearn.compose import recompose
from metalearn.config import Config, resolve
from metalearn.launch import explained
from metalearn.registry import UserError
from metalearn.sweep.definition import Searched, Sweep
from metalearn.sweep.listed import draws, size
from metalearn.sweep.options import GridOptions, SweepOptions, options_of
from metalearn.sweep.space import MOST, Dimension, Interval, Point, dimension, parse

TRIED = 16  # points, until one is a configuration without a mistake
OWN = {  # keys that a sweep sets for each of its jobs, and what to do instead
    "run_dir": "each job has a folder of its own; choose where by runs=",
    "train.stop_at": "a sweep says where its jobs stop; choose sweep=halving or hyperband",
    "hydra/launcher": "choose launcher=processes, joblib, slurm or ray",
    "hydra/sweeper": "choose sweep=grid, random, tpe, gp, halving or hyperband",
}


def read(arguments: Sequence[str]) -> Sweep:
    """The sweep of `metalearn train -m ARGUMENTS`. Raises UserError and Hydra's errors."""
    flags, lines = _flags(arguments)
    overrides = parse(lines)
    _refuse(overrides)
    mine = [o for o in overrides if o.key_or_group.partition(".")[0] in ("sweep", "launcher")]
    others = [o for o in overrides if o not in mine]
    seeds = [o for o in others if o.key_or_group == "seed"]
    swept = [o for o in others if o.is_sweep_override() and o not in seeds]
    fixed = tuple(o.input_line or "" for o in others if o not in swept and o not in seeds)
    space = [dimension(override) for override in swept]
    own = [o.input_line or "" for o in mine]
    settings = first = _composed([*flags, *fixed, *_first(space), *([] if flags else own)])
    if flags:
        settings = _composed(own)
    options = options_of(_plain(settings, "sweep"))
    more = _from_yaml(options, others)
    if more:
        space += more
        first = _composed([*flags, *fixed, *_first(space)])
    if not isinstance(options, GridOptions):
        space.sort(key=lambda dimension: dimension.key)  # points do not depend on the order of a command
    base = _base(first, [*flags, *fixed], space)
    sweep = Sweep(
        options=options,
        launcher=_plain(settings, "launcher"),
        fixed=fixed,
        flags=flags,
        space=tuple(space),
        seeds=_seeds(options, seeds, base),
        base=base,
        searched=Searched(
            options.metric or base.train.monitor, options.goal or base.train.goal, options.value
        ),
    )
    _check(sweep)
    return sweep


def _flags(arguments: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """`--config-dir RUN`, and the overrides."""
    flags: list[str] = []
    lines: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument == "--config-dir":
            flags = [argument, next(left, "")]
        elif argument == "--config-name":
            next(left, None)  # a run directory has one, run
        elif argument.startswith("-"):
            raise UserError(f"{argument}: a sweep takes overrides, --config-dir RUN, --dry-run and --cfg job")
        else:
            lines.append(argument)
    return tuple(flags), lines


def _refuse(overrides: Sequence[Override]) -> None:
    for override in overrides:
        key = override.key_or_group
        if key in OWN or key.startswith("hydra"):
            raise UserError(f"{override.input_line}: {OWN.get(key, 'sweeps are not run by Hydra')}")
        if key.partition(".")[0] in ("sweep", "launcher") and override.is_sweep_override():
            raise UserError(f"{override.input_line}: must be one value; a list is written '{key}=[1,2]'")


def _composed(lines: Sequence[str]) -> DictConfig:
    with explained(lines):
        composed = recompose(lines)
    if composed.get("replicate") is not None:
        raise UserError("recipe: it is a plan of several runs, which metalearn replicate NAME runs")
    return composed


def _first(space: Sequence[Dimension]) -> Point:
    return tuple(d.override((d.values() or (d.draw(random.Random(0)),))[0]) for d in space)


def _plain(settings: DictConfig, key: str) -> dict[str, Any]:
    values = OmegaConf.to_container(settings[key], resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def _from_yaml(options: SweepOptions, others: Sequence[Override]) -> list[Dimension]:
    """The dimensions of `sweep.params` that the command line does not set."""
    said = {override.get_key_element().lstrip("+") for override in others}
    lines = [f"{key}={value}" for key, value in options.params.items() if key.lstrip("+") not in said]
    found = parse(lines)
    for override in found:
        if override.key_or_group == "seed" or not override.is_sweep_override():
            raise UserError(
                f"sweep.params: {override.input_line} sweeps nothing; give values, e.g. 'a,b', and seeds by "
                "sweep.seeds"
            )
    return [dimension(override) for override in found]


def _base(first: DictConfig, fixed: Sequence[str], space: Sequence[Dimension]) -> Config:
    """A configuration of the sweep: the first point's, or of those after it if that has a mistake."""
    try:
        return resolve(first)
    except UserError as mistake:
        for point in draws(space, 0, TRIED):
            with contextlib.suppress(UserError):
                return resolve(_composed([*fixed, *point]))
        raise mistake from None


def _seeds(options: SweepOptions, said: Sequence[Override], base: Config) -> tuple[int, ...]:
    if said and options.seeds is not None:
        raise UserError(
            f"{said[-1].input_line}: sweep.seeds={options.seeds} says so already; give one of both"
        )
    if options.seeds is not None:
        return tuple(options.seeds)
    if not said:
        return (base.seed,)
    override = said[-1]
    values = dimension(override).values() if override.is_sweep_override() else (str(override.value()),)
    if values is None or not all(value.isdigit() for value in values):
        raise UserError(f"{override.input_line}: must be whole numbers, e.g. seed=0,1,2 or seed=range(5)")
    return tuple(int(value) for value in values)


def _check(sweep: Sweep) -> None:
    """What a search needs. Raises UserError."""
    _check_size(sweep)
    if isinstance(sweep.options, GridOptions):
        return
    strategy, train = sweep.options.strategy, sweep.base.train
    if not sweep.space:
        raise UserError(
            f"sweep={strategy}: nothing is swept; give e.g. "
            "'method.learning_rate=tag(log,interval(1e-4,1e-1))'"
        )
    if sweep.searched.metric is None:
        raise UserError(f"sweep={strategy}: needs a metric to go by; set sweep.metric, e.g. valid/loss")
    if sweep.searched.metric.startswith("test/"):
        raise UserError(
            f"train.monitor: got {sweep.searched.metric}; nothing is tuned on test data, set sweep.metric"
        )
    if not sweep.cadence:
        raise UserError(
            f"sweep.metric: {sweep.searched.metric} is never measured, train.evaluate_every is 0; set it "
            "above 0"
        )
    if sweep.stops_runs and any(dimension.key.startswith("train.") for dimension in sweep.space):
        raise UserError(f"sweep={strategy}: keys of train cannot be swept, all runs have the same rungs")
    if sweep.stops_runs and train.minutes is not None:
        raise UserError(f"sweep={strategy}: runs are cut by steps, not by train.minutes; set it to null")


def _check_size(sweep: Sweep) -> None:
    options = sweep.options
    if isinstance(options, GridOptions) and any(isinstance(one, Interval) for one in sweep.space):
        return  # it has no size, and is refused for that
    asked = getattr(options, "trials", None) or getattr(options, "population", None) or MOST
    points = size(sweep.space) if isinstance(options, GridOptions) else min(asked, size(sweep.space))
    if points * len(sweep.seeds) > MOST and not (asked == MOST and sweep.stops_runs):
        raise UserError(
            f"sweep={options.strategy}: {points} points with {len(sweep.seeds)} seeds each are more than the "
            f"{MOST} jobs that a sweep takes; give fewer values or seeds, or draw some by sweep=random"
        )
