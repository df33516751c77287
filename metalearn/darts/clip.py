"""Clipping inside the unrolled step, as the authors' code does for recurrent cells (rnn/architect.py)."""

from typing import Any

import torch
from torch import Tensor

from metalearn.tree import Tree, clip_norm, norm, scale


def clip_step(grads: Tree, limit: float, derivative: str) -> Tree:
    """`grads` clipped to norm `limit`, and what its derivative is taken to be.

    exact: of the clipping itself. constant: the factor is a constant. authors: the factor is the constant
    limit / (norm + 1e-6), even where the norm is below the limit and nothing is clipped.
    """
    clipped = clip_norm(grads, limit)
    if derivative == "exact":
        return clipped
    ratio = (limit / (norm(grads) + 1e-6)).detach()
    factor = ratio if derivative == "authors" else ratio.clamp(max=1.0)
    through = scale(grads, factor)
    return {key: through[key] + (clipped[key] - through[key]).detach() for key in grads}


def clip_backward(tree: Tree, limit: float) -> Tree:
    """The same values; in a backward pass the gradient of the whole tree is clipped to norm `limit`."""
    return dict(zip(tree, _ClipBackward.apply(limit, *tree.values()), strict=True))  # type: ignore[arg-type]


class _ClipBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, limit: float, *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.limit = limit
        return tuple(leaf.view_as(leaf) for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        clipped = clip_norm(dict(enumerate(grads)), ctx.limit)  # type: ignore[arg-type]
        return None, *clipped.values()
