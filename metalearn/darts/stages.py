"""A search in stages: networks grow deeper while their edges lose operations (P-DARTS).

Chen et al. 2019, arXiv:1904.12760, sections 3.2 and 3.3, from memory; what the paper leaves open (none is
pruned like the others; weights, alpha and the cosine start anew in each stage) as in the authors' code
(chenxin061/pdarts, train_search.py).
"""

from typing import NamedTuple

import torch

from metalearn.darts.architecture import Masks
from metalearn.darts.config import StagesOptions
from metalearn.darts.space import Choices
from metalearn.registry import UserError
from metalearn.tree import Tree


class Stage(NamedTuple):
    """A part of a search: the steps from `begin` on and before `end`."""

    number: int
    begin: int
    end: int

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.end - self.begin

    def progress(self, index: int) -> float:
        """How much of the stage is over before a step, from 0 to 1."""
        return min(1.0, (index - self.begin) / self.steps)


class Schedule:
    """`steps` in equal shares for the stages; what comes after belongs to the last. Raises UserError."""

    def __init__(self, options: StagesOptions, steps: int) -> None:
        _check(options)
        self.options, self.steps, self.count = options, steps, len(options.cells) + 1
        if steps < self.count:
            raise UserError(
                f"train.steps: {steps} are left for {self.count} stages, each takes at least 1; raise "
                "train.steps or shorten method.stages"
            )

    def at(self, index: int) -> Stage:
        """The stage that a step belongs to."""
        return self.stage(min(index * self.count // self.steps, self.count - 1))

    def stage(self, number: int) -> Stage:
        """Its steps."""
        begin, end = (-(-place * self.steps // self.count) for place in (number, number + 1))
        return Stage(number, begin, end)

    def skip_dropout(self, index: int) -> float:
        """Falls linearly from the stage's value to 0.

        The authors' code: linearly until alpha moves, then from that value again by exp(-0.2) an epoch.
        """
        stage, rates = self.at(index), self.options.skip_dropout
        return rates[stage.number] * (1 - stage.progress(index)) if rates else 0.0


def pruned(strengths: Tree, allowed: Masks, keep: int) -> Masks:
    """The `keep` strongest of the allowed operations of each edge, of equals the earlier one."""
    masks = {}
    for kind, mask in allowed.items():
        ranked = strengths[kind].masked_fill(~mask, float("-inf")).sort(dim=1, descending=True, stable=True)
        strongest = torch.zeros_like(mask).scatter(1, ranked.indices[:, :keep], True)
        masks[kind] = strongest & mask
    return masks


def check_operations(options: StagesOptions, choices: dict[str, Choices]) -> None:
    """Raises UserError for a first pruning that would leave every edge as it is."""
    most = max(int(choice.allowed.sum(dim=1).max()) for choice in choices.values())
    if options.operations and options.operations[0] >= most:
        raise UserError(
            f"method.stages.operations: got {options.operations}, an edge of this space has {most} to begin "
            f"with; the first must be at most {most - 1}"
        )


def _check(options: StagesOptions) -> None:
    cells, operations, rates = options.cells, options.operations, options.skip_dropout
    if len(operations) != len(cells):
        raise UserError(
            f"method.stages: {len(cells)} cells and {len(operations)} operations; each stage after the first "
            "has one of both"
        )
    if operations != sorted(set(operations), reverse=True):
        raise UserError(f"method.stages.operations: got {operations}, must fall from stage to stage")
    if rates and len(rates) != len(cells) + 1:
        raise UserError(
            f"method.stages.skip_dropout: got {len(rates)} values for {len(cells) + 1} stages; give one for "
            "each, or none"
        )
