"""The strategy of a sweep by name."""

from pathlib import Path

from metalearn.registry import UserError
from metalearn.sweep.brackets import Brackets, Rung, halving, hyperband, in_steps
from metalearn.sweep.definition import Sweep
from metalearn.sweep.listed import Listed, draws, grid
from metalearn.sweep.options import BayesianOptions, HalvingOptions, HyperbandOptions, RandomOptions
from metalearn.sweep.strategy import Strategy


def build_strategy(sweep: Sweep, folder: Path, reading: bool = False) -> Strategy:
    """A strategy at its beginning; Bayesian ones have their study in `folder`, where `reading` leaves all
    as it is. Raises UserError.
    """
    options = sweep.options
    if isinstance(options, BayesianOptions):
        from metalearn.sweep.bayesian import Bayesian

        return Bayesian(sweep.space, options, sweep.searched.goal, folder, reading)
    if isinstance(options, RandomOptions):
        return Listed(draws(sweep.space, options.seed, options.trials), "random points")
    if isinstance(options, HalvingOptions | HyperbandOptions):
        steps = sweep.base.train.steps
        found = (
            _halving(options, steps) if isinstance(options, HalvingOptions) else _hyperband(options, sweep)
        )
        brackets = [in_steps(bracket, steps, sweep.cadence) for bracket in found]
        points = draws(sweep.space, options.seed, sum(bracket[0].points for bracket in brackets))
        return Brackets(brackets, points, sweep.searched.goal)
    return Listed(grid(sweep.space), "every combination")


def _halving(options: HalvingOptions, steps: int) -> list[list[Rung]]:
    rungs = options.rungs
    if rungs is None:
        assert options.minimum is not None
        rungs = _depth(steps, options.minimum, options.eta) + 1
    return [halving(options.population, options.eta, rungs, steps)]


def _hyperband(options: HyperbandOptions, sweep: Sweep) -> list[list[Rung]]:
    steps, minimum = sweep.base.train.steps, options.minimum or sweep.cadence
    _depth(steps, minimum, options.eta)
    brackets = hyperband(steps / minimum, options.eta, options.population)
    return [[rung._replace(resource=rung.resource * minimum) for rung in bracket] for bracket in brackets]


def _depth(steps: int, minimum: int, eta: int) -> int:
    """How many times `minimum` steps times eta fit. Raises UserError if not once."""
    depth = 0
    while minimum * eta ** (depth + 1) <= steps:
        depth += 1
    if depth == 0:
        raise UserError(
            f"sweep.minimum: {minimum} steps, times eta={eta}, are more than train.steps={steps}; no run "
            "would be stopped early: lower sweep.minimum (null: train.evaluate_every)"
        )
    return depth
