"""The dominant eigenvalue of a symmetric matrix that is known by its products with vectors."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.implicit import Product
from metalearn.tree import Tree

Multiply = Callable[[Tensor], Tensor]  # the same on one vector of float64


def dominant_eigenvalue(kind: str, product: Product, start: Tree, iterations: int) -> Float[Tensor, ""]:
    """lanczos: the largest eigenvalue; power: the one of largest magnitude, with its sign.

    Both from `start`, by at most `iterations` products; vectors are kept in float64.
    """
    shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in start.items()}
    sizes = [leaf.numel() for leaf in start.values()]

    def multiply(vector: Tensor) -> Tensor:
        parts = zip(shapes.items(), vector.split(sizes), strict=True)
        return _vector(product({key: part.reshape(shape).to(dtype) for (key, (shape, dtype)), part in parts}))

    method = {"lanczos": lanczos, "power": power}[kind]
    return method(multiply, _vector(start), iterations)


def lanczos(multiply: Multiply, start: Float[Tensor, " n"], iterations: int) -> Float[Tensor, ""]:
    """The largest Ritz value of the Krylov space of `start`, whose basis is orthogonalised twice in full.

    It is at most the largest eigenvalue, and equal to it when the space is exhausted.
    """
    basis, images = [start / torch.linalg.vector_norm(start)], []
    while True:
        images.append(multiply(basis[-1]))
        if len(images) == min(iterations, start.numel()):
            break
        rest, known = images[-1], torch.stack(basis)
        for _ in range(2):
            rest = rest - known.T @ (known @ rest)
        length = torch.linalg.vector_norm(rest)
        # a decision for the host: an exhausted space has no next direction
        if length <= 1e-12 * torch.linalg.vector_norm(images[-1]):
            break
        basis.append(rest / length)
    projected = torch.stack(basis) @ torch.stack(images).T
    return torch.linalg.eigvalsh((projected + projected.T) / 2)[-1]


def power(multiply: Multiply, start: Float[Tensor, " n"], iterations: int) -> Float[Tensor, ""]:
    """The Rayleigh quotient of the last of `iterations` multiplied vectors."""
    vector, quotient = start, start.new_zeros(())
    for _ in range(iterations):
        vector = vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(vector.dtype).tiny)
        image = multiply(vector)
        vector, quotient = image, vector @ image
    return quotient


def _vector(tree: Tree) -> Tensor:
    return torch.cat([leaf.detach().double().flatten() for leaf in tree.values()])
