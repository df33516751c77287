"""What an update rule remembers between steps, found by asking it about small problems."""

import torch

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.tree import Tree

SMALL: dict[str, tuple[int, ...]] = {"0": (1,)}
LARGE = SMALL | {"1": (3, 5)}
KINDS = {15: "coordinate", 1: "tensor"}  # by how much longer a slot is in the large problem


def kinds(rule: UpdateRule) -> dict[str, str]:
    """What each slot is kept for: every "coordinate", every "tensor", or the "whole" problem."""
    small, large = _slots(rule, SMALL), _slots(rule, LARGE)
    longer = {
        name: leaf.shape[1] - small[name].shape[1] if leaf.dim() > 1 else 0 for name, leaf in large.items()
    }
    return {name: KINDS.get(more, "whole") for name, more in longer.items()}


def memory_per_parameter(rule: UpdateRule) -> float:
    """Bytes for each parameter of float32, by measurement; what is kept for a whole tensor is left out."""
    few, many = (sum(leaf.nbytes for leaf in _slots(rule, {"0": (size,)}).values()) for size in (64, 128))
    return (many - few) / 64


def _slots(rule: UpdateRule, shapes: dict[str, tuple[int, ...]]) -> Tree:
    layout = Layout(shapes, torch.device("cpu"))
    return rule.slots(torch.zeros(1, layout.coordinates, dtype=torch.float32), layout)
