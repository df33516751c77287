"""What an update rule remembers between steps, found by asking it about small problems."""

from collections.abc import Sequence

import torch

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.tree import Tree

Shapes = dict[str, tuple[int, ...]]
ONE: Shapes = {"0": (1,)}
TWO = ONE | {"1": (3, 5)}
SIDE = 64  # of the matrix that memory is measured on


def memory_per_parameter(rule: UpdateRule) -> float:
    """Bytes for each parameter of a float32 matrix, measured, but for what a tensor of any size takes."""
    least, whole = (
        sum(leaf.nbytes for leaf in _fresh(rule, {"0": (side, side)}).values()) for side in (1, SIDE)
    )
    return (whole - least) / (SIDE * SIDE - 1)


def kept(rule: UpdateRule, layout: Layout, before: Tree, after: Tree, present: Sequence[bool]) -> Tree:
    """`after`, but `before` where it is of a tensor that is not `present`.

    A slot that lies tensor by tensor (coordinates, rows, one number each) is told apart; what is of the whole
    problem, as a count of steps, goes on.
    """
    slots = dict(after)
    for name, axis in _axes(rule).items():
        lengths = [_fresh(rule, {"0": shape})[name].shape[axis] for shape in layout.shapes.values()]
        place = torch.tensor(present).repeat_interleave(torch.tensor(lengths)).to(after[name].device)
        sizes = [1] * after[name].dim()
        sizes[axis] = -1
        slots[name] = torch.where(place.view(sizes), after[name], before[name])
    return slots


def _axes(rule: UpdateRule) -> dict[str, int]:
    """Along which axis the slots that lie tensor by tensor do so."""
    small, large = _fresh(rule, ONE), _fresh(rule, TWO)
    longer = {
        name: [axis for axis in range(1, leaf.dim()) if leaf.shape[axis] != small[name].shape[axis]]
        for name, leaf in large.items()
    }
    return {name: axes[0] for name, axes in longer.items() if len(axes) == 1}


def _fresh(rule: UpdateRule, shapes: Shapes) -> Tree:
    layout = Layout(shapes, torch.device("cpu"))
    return rule.slots(torch.zeros(1, layout.coordinates, dtype=torch.float32), layout)
