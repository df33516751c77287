"""What an update rule remembers between steps, found by asking it about small problems."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.tree import Tree

Shapes = Mapping[str, tuple[int, ...]]
ONE: Shapes = {"kernel": (2, 3, 4), "matrix": (3, 5), "vector": (7,)}  # of all kinds
TWO: Shapes = {**ONE, **{f"other {name}": shape for name, shape in ONE.items()}}
SIDE = 64  # of the matrix that memory is measured on


class Place(NamedTuple):
    """Where tensors lie in a slot."""

    axis: int
    owner: Int64[Tensor, " length"]  # which tensor each of its entries along the axis is of


def memory_per_parameter(rule: UpdateRule) -> float:
    """Bytes for each parameter of a float32 matrix, measured, but for what a tensor of any size takes."""
    least, whole = (
        sum(leaf.nbytes for leaf in _fresh(rule, {"0": (side, side)}).values()) for side in (1, SIDE)
    )
    return (whole - least) / (SIDE * SIDE - 1)


def places(rule: UpdateRule, layout: Layout) -> dict[str, Place]:
    """Of the slots that lie tensor by tensor: by coordinates, rows, or one number each.

    They are those that more tensors make longer along one axis. A tensor's part of one is by how much that of
    it and all tensors before it is longer than that of those alone: its group may depend on them.
    """
    axes, found = _axes(rule), {}
    names = list(layout.shapes)
    lengths = [
        _lengths(rule, axes, {name: layout.shapes[name] for name in names[: count + 1]})
        for count in range(len(names))
    ]
    for name in lengths[-1]:
        ends = torch.tensor([0, *(known.get(name, 0) for known in lengths)])
        found[name] = Place(axes[name], torch.repeat_interleave(ends.diff()).to(layout.owner.device))
    return found


def kept(places: Mapping[str, Place], before: Tree, after: Tree, present: Sequence[bool]) -> Tree:
    """`after`, but `before` where it is of a tensor that is not `present`.

    What is of the whole problem, as a count of steps, goes on.
    """
    slots = dict(after)
    for name, (axis, owner) in places.items():
        sizes = [1] * after[name].dim()
        sizes[axis] = -1
        there = torch.tensor(present, device=owner.device)[owner]
        slots[name] = torch.where(there.view(sizes), after[name], before[name])
    return slots


def _axes(rule: UpdateRule) -> dict[str, int]:
    """Along which axis the slots that lie tensor by tensor do so."""
    small, large = _fresh(rule, ONE), _fresh(rule, TWO)
    longer = {
        name: [axis for axis in range(1, leaf.dim()) if leaf.shape[axis] != small[name].shape[axis]]
        for name, leaf in large.items()
    }
    return {name: axes[0] for name, axes in longer.items() if len(axes) == 1}


def _lengths(rule: UpdateRule, axes: Mapping[str, int], shapes: Shapes) -> dict[str, int]:
    """Of those slots of a problem, along their axes."""
    return {name: leaf.shape[axes[name]] for name, leaf in _fresh(rule, shapes).items() if name in axes}


def _fresh(rule: UpdateRule, shapes: Shapes) -> Tree:
    """Slots without numbers, of which only types and shapes are asked."""
    layout = Layout(shapes, torch.device("meta"))
    return rule.slots(torch.zeros(1, layout.coordinates, dtype=torch.float32, device="meta"), layout)
