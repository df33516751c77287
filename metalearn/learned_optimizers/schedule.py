"""How long each run of meta-training is, and which run a group is in at a step."""

import math
from typing import NamedTuple

import torch

from metalearn.learned_optimizers.config import MetaTrainingOptions
from metalearn.registry import UserError
from metalearn.rng import generator


class Place(NamedTuple):
    """Where a group stands before a step."""

    run: int  # how many runs it has behind it
    part: int  # unrolls of the present run behind it
    parts: int  # unrolls of the whole run


class Schedule:
    """The runs of all groups one after the other, a pure function of the step: a resume needs no state.

    Lengths are in whole unrolls. A run is as long as the curriculum allows when it begins (Chen et al. 2017;
    Chen et al. 2020, whose stages grow geometrically); with `log_uniform` that is the most, and the length is
    drawn. With `stagger` group g's first run is cut by the share g / groups, so that the groups do not
    start anew all at the same step; and once more the first that a grown curriculum begins, for the lengths
    before it may be of one unroll.
    """

    def __init__(self, options: MetaTrainingOptions, seed: int) -> None:
        _check(options)
        self.options, self.seed = options.horizons, seed
        self.unroll, self.groups = options.unroll, options.groups
        self.horizon = options.horizon
        self._fixed = self.options.draw == "fixed" and self.options.curriculum == "none"
        self._begun: dict[int, tuple[int, Place]] = {}  # of each group a step where a run began, and that run

    def place(self, index: int, group: int) -> Place:
        """Where a group stands before step `index`."""
        if self._fixed and not self.options.stagger:
            parts = self.horizon // self.unroll
            return Place(*divmod(index, parts), parts)
        start, place = self._begun.get(group, (0, Place(0, 0, self._parts(0, group, 0, -1))))
        if start > index:
            start, place = 0, Place(0, 0, self._parts(0, group, 0, -1))
        while start + place.parts <= index:
            before, start = start, start + place.parts
            place = Place(place.run + 1, 0, self._parts(start, group, place.run + 1, before))
        self._begun[group] = start, place
        return place._replace(part=index - start)

    def longest(self, index: int) -> int:
        """Unrolls of the longest run that may begin at a step."""
        options, share = self.options, 1.0
        if options.curriculum == "none":
            return self.horizon // self.unroll
        share = min(1.0, index / options.over)
        if options.curriculum == "linear":
            steps = options.first + share * (self.horizon - options.first)
        else:
            steps = options.first * (self.horizon / options.first) ** share
        return max(1, int(steps + 1e-6) // self.unroll)

    def _parts(self, index: int, group: int, run: int, before: int) -> int:
        """How many unrolls has a group's run that begins at step `index`, the one before it at `before`."""
        parts = self.longest(index)
        if self.options.draw == "log_uniform":
            low = min(math.log(self.options.shortest / self.unroll), math.log(parts))
            drawn = torch.rand(1, generator=generator(self.seed, "horizon", group, run)).item()
            parts = max(1, round(math.exp(low + drawn * (math.log(parts) - low))))
        grown = self.options.curriculum != "none" and before < self.options.over <= index
        if self.options.stagger and (run == 0 or grown):
            return max(1, parts * (self.groups - group) // self.groups)
        return parts


def _check(options: MetaTrainingOptions) -> None:
    """Raises UserError for lengths that do not fit together."""
    if options.horizon % options.unroll:
        raise UserError(f"method.unroll: got {options.unroll}, must divide method.horizon, {options.horizon}")
    horizons, allowed = options.horizons, f"from method.unroll, {options.unroll}, to method.horizon"
    used = {"shortest": horizons.draw == "log_uniform", "first": horizons.curriculum != "none"}
    for name, value in (("shortest", horizons.shortest), ("first", horizons.first)):
        if used[name] and not options.unroll <= value <= options.horizon:
            raise UserError(f"method.horizons.{name}: got {value}, must be {allowed}, {options.horizon}")
