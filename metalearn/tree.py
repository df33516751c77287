"""Arithmetic on trees of tensors: flat dictionaries from a parameter's name to its value."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Tree = dict[str, Tensor]


def tree_map(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply `function` leaf by leaf; every tree has the keys of the first, whose order is kept."""
    first = trees[0]
    return {key: function(*(tree[key] for tree in trees)) for key in first}


def add(a: Tree, b: Tree, scale: float | Tensor = 1.0) -> Tree:
    """a + scale * b, leaf by leaf."""
    return {key: a[key] + scale * b[key] for key in a}


def scale(tree: Tree, factor: float | Tensor) -> Tree:
    """factor * tree, leaf by leaf."""
    return {key: factor * leaf for key, leaf in tree.items()}


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros with the shapes, types and devices of `tree`."""
    return {key: torch.zeros_like(leaf) for key, leaf in tree.items()}


def dot(a: Tree, b: Tree) -> Tensor:
    """The inner product of two trees, a scalar."""
    return torch.stack([(a[key] * b[key]).sum() for key in a]).sum()


def norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all leaves taken as one vector, a scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(leaf) for leaf in tree.values()]))


def detach(tree: Tree) -> Tree:
    """The same values outside any autograd graph."""
    return {key: leaf.detach() for key, leaf in tree.items()}


def require_grad(tree: Tree) -> Tree:
    """The same values as fresh leaves that autograd can differentiate by."""
    return {key: leaf.detach().requires_grad_() for key, leaf in tree.items()}


def gradient(
    output: Tensor, tree: Tree, create_graph: bool = False, retain_graph: bool | None = None
) -> Tree:
    """d output / d tree as a tree; a leaf that `output` does not depend on gets zeros."""
    leaves = tuple(tree.values())
    grads = torch.autograd.grad(
        output,
        leaves,
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(tree, grads, strict=True))


def clip_norm(tree: Tree, limit: float) -> Tree:
    """`tree` scaled down to norm `limit` where it is longer, as `torch.nn.utils.clip_grad_norm_`."""
    factor = torch.clamp(limit / (norm(tree) + 1e-6), max=1.0)
    return scale(tree, factor)


def count(tree: Tree | Iterable[Tensor]) -> int:
    """How many numbers the tensors hold together."""
    leaves = tree.values() if isinstance(tree, dict) else tree
    return sum(leaf.numel() for leaf in leaves)
