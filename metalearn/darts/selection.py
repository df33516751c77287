"""How a genotype is read from a search: by strength, with a limit of skips, or by perturbation."""

import dataclasses
from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.darts.architecture import Masks
from metalearn.darts.config import SelectionOptions, WeightOptions
from metalearn.darts.genotype import AnyGenotype
from metalearn.darts.space import Choices, Mixture, SearchSpace
from metalearn.darts.weights import learning_rate
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Task
from metalearn.tree import Tree

SKIP, LIMITED = "skip_connect", "normal"  # of cells of this kind alone

# how bad a supernet is under a mixture, by first then by second number; on the device
Judge = Callable[[Mixture], Float[Tensor, "2"]]


def limited(space: SearchSpace, strengths: Tree, most: int | None) -> AnyGenotype:
    """The genotype of `strengths` with at most so many skip connections in its normal cell; None: any.

    While there are more the weakest loses its strength and the genotype is read again, so its edge gets
    another operation or gives way to another edge (Chen et al. 2019, arXiv:1904.12760, section 3.3, and the
    authors' code, chenxin061/pdarts, train_search.py). A skip that nothing can replace stays.
    """
    genotype = space.discretise(strengths)
    while most is not None and genotype.skips()[LIMITED] > most:
        weaker = (_without(space, strengths, edge) for edge in _weakest_skips(space, genotype, strengths))
        found = next((less for less in weaker if _stands(space, less)), None)
        if found is None:
            break
        strengths = found
        genotype = space.discretise(strengths)
    return genotype


def _weakest_skips(space: SearchSpace, genotype: AnyGenotype, strengths: Tree) -> list[int]:
    """The edges on which the genotype has skips, the weakest first."""
    column = space.choices[LIMITED].operations.index(SKIP)
    edges = space.encode(genotype)[LIMITED][:, column].nonzero().flatten().tolist()
    values = strengths[LIMITED][:, column].tolist()
    return sorted(edges, key=values.__getitem__)


def _without(space: SearchSpace, strengths: Tree, edge: int) -> Tree:
    changed = strengths[LIMITED].clone()
    changed[edge, space.choices[LIMITED].operations.index(SKIP)] = 0.0
    return {**strengths, LIMITED: changed}


def _stands(space: SearchSpace, strengths: Tree) -> bool:
    """Whether all that the genotype is made of has some strength."""
    mask = space.encode(space.discretise(strengths))[LIMITED]
    return bool((strengths[LIMITED][mask] > 0).all())


class Decision(NamedTuple):
    """Of the operations on some edges so many are kept."""

    kind: str
    edges: tuple[int, ...]
    keep: int


class Timetable:
    """When perturbation decides: one round of decisions every `steps` steps, the last before the last step.

    Each round has one decision for every kind of cell: first about the operation of an edge, all edges in
    random order; then about the incoming edges of a node, all nodes in random order that have more than a
    genotype has (Wang et al. 2021, arXiv:2108.04392, algorithm 1, from memory). The authors' code
    (ruocwang/darts-pt, sota/cnn/projection.py) has this order too; unlike it alpha rests meanwhile, `none` is
    not chosen, and a node's edges are judged once, not again after each that goes. Without perturbation there
    are no rounds. Raises UserError if the run is too short.
    """

    def __init__(self, options: SelectionOptions, space: SearchSpace, seed: int, steps: int) -> None:
        _check(options, space)
        self.options, self.steps, self.last = options, options.steps, steps
        self.rounds = _rounds(space, seed) if options.kind == "perturbation" else []
        self.begin = steps
        if self.rounds:
            taken = (len(self.rounds) - 1) * self.steps + 1
            self.begin = steps - taken
            if self.begin < 1:
                raise UserError(
                    f"train.steps: got {steps}; selection by perturbation takes the last {taken} "
                    f"({len(self.rounds)} rounds, method.selection.steps={self.steps} apart) and the search "
                    "before it at least 1; raise train.steps or lower method.selection.steps"
                )

    def due(self, index: int) -> int:
        """How many rounds are to be over when a step is taken."""
        if index < self.begin:
            return 0
        past = (index - self.begin) // self.steps if self.steps else len(self.rounds)
        return min(past + 1, len(self.rounds))

    def learning_rate(self, options: WeightOptions, task: Task, index: int) -> float:
        """Of the weights in the steps from the first decision on: as before, but from a start of its own."""
        start = dataclasses.replace(options, learning_rate=self.options.learning_rate)
        return learning_rate(start, task, index - self.begin, self.last - self.begin)


def decide(
    decision: Decision, choices: dict[str, Choices], weights: Tree, allowed: Masks, judge: Judge
) -> Masks:
    """`allowed` with what is left of the decision's edges: the operations whose removal hurts most.

    None of the space (`none`) is not one of them. The shares of what stays are not raised when an operation
    is removed, as in the authors' code.
    """
    mask = allowed[decision.kind].clone()
    names = choices[decision.kind].operations
    rows = mask.tolist()
    places = [
        (edge, place)
        for edge in decision.edges
        for place, possible in enumerate(rows[edge])
        if possible and names[place] != "none"
    ]
    if len(places) > decision.keep:
        scores = [judge(_removal(weights, allowed, decision.kind, place)) for place in places]
        # which operation is masked next hangs on these numbers: the one read from the device of a decision
        hurt = torch.stack(scores).tolist()
        order = sorted(range(len(places)), key=hurt.__getitem__, reverse=True)
        places = [places[index] for index in order[: decision.keep]]
    mask[list(decision.edges)] = False
    for edge, place in places:
        mask[edge, place] = True
    return {**allowed, decision.kind: mask}


def running(allowed: Masks) -> dict[str, list[list[bool]]]:
    """What is computed at all."""
    return {kind: mask.tolist() for kind, mask in allowed.items()}


def _removal(weights: Tree, allowed: Masks, kind: str, place: tuple[int, int]) -> Mixture:
    mask, changed = allowed[kind].clone(), weights[kind].clone()
    mask[place], changed[place] = False, 0.0
    return Mixture({**weights, kind: changed}, running({**allowed, kind: mask}))


def _rounds(space: SearchSpace, seed: int) -> list[list[Decision]]:
    kept = space.encode(space.sample(generator(seed, "selection")))
    columns = [
        _decisions(kind, choice.targets, kept[kind], generator(seed, "selection", kind))
        for kind, choice in space.choices.items()
    ]
    return [[decision for decision in row if decision] for row in zip_longest(*columns)]


def _decisions(kind: str, targets: tuple[int, ...], kept: Tensor, rng: torch.Generator) -> list[Decision]:
    """Of one kind of cell; how many edges a node keeps is seen in `kept`, the operations of some genotype."""
    order = torch.randperm(len(targets), generator=rng).tolist()
    decisions = [Decision(kind, (edge,), 1) for edge in order]
    nodes = sorted(set(targets))
    for place in torch.randperm(len(nodes), generator=rng).tolist():
        edges = tuple(edge for edge, target in enumerate(targets) if target == nodes[place])
        keep = int(kept[list(edges)].any(dim=1).sum())
        if len(edges) > keep:
            decisions.append(Decision(kind, edges, keep))
    return decisions


def _check(options: SelectionOptions, space: SearchSpace) -> None:
    if options.skips is None:
        return
    if options.kind == "perturbation":
        raise UserError(
            "method.selection.skips: perturbation leaves one operation on an edge, so a skip has none to "
            "give way to; set method.selection.skips=null or method.selection.kind=strength"
        )
    if LIMITED not in space.choices or SKIP not in space.choices[LIMITED].operations:
        raise UserError(
            f"method.selection.skips: {type(space).__name__} has no {LIMITED} cell with {SKIP}; set "
            "method.selection.skips=null"
        )
