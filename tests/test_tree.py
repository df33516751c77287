"""Arithmetic on trees, against the same on one flat vector."""

import torch

from metalearn import tree

A = {"w": torch.tensor([[1.0, -2.0], [3.0, 0.5]]), "b": torch.tensor([4.0])}
B = {"w": torch.tensor([[0.5, 1.0], [-1.0, 2.0]]), "b": torch.tensor([-3.0])}


def _flat(leaves):
    return torch.cat([leaf.flatten() for leaf in leaves.values()])


def test_arithmetic_is_that_of_vectors():
    torch.testing.assert_close(_flat(tree.add(A, B, 0.1)), _flat(A) + 0.1 * _flat(B))
    torch.testing.assert_close(_flat(tree.scale(A, -2.0)), -2.0 * _flat(A))
    torch.testing.assert_close(tree.dot(A, B), _flat(A) @ _flat(B))
    torch.testing.assert_close(tree.norm(A), _flat(A).norm())
    assert tree.count(A) == 5
    assert not _flat(tree.zeros_like(A)).any()


def test_clip_norm_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(5))
    parameter.grad = _flat(A).clone()
    torch.nn.utils.clip_grad_norm_([parameter], 0.5)
    torch.testing.assert_close(_flat(tree.clip_norm(A, 0.5)), parameter.grad)
    torch.testing.assert_close(_flat(tree.clip_norm(A, 100.0)), _flat(A))


def test_gradient_gives_zeros_where_nothing_depends():
    leaves = tree.require_grad(A)
    grads = tree.gradient((leaves["w"] ** 2).sum(), leaves)
    torch.testing.assert_close(grads["w"], 2 * A["w"])
    torch.testing.assert_close(grads["b"], torch.zeros(1))
