"""How far the effective recurrent matrices of hypernetworks move (Ha, Dai and Le 2017, figure 4).

All norms are Frobenius norms, of differences that are never built. Our weights are [inputs outputs]: the
paper's rows are columns.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypernetworks.hyperlstm import HyperLSTMCell
from metalearn.hypernetworks.hyperrnn import GeneratedWeight, HyperRNNCell, MixedMatrices, ScaledRows
from metalearn.hypernetworks.recurrent import GATES

NAMES = ("i", "g", "f", "o")  # of the gates, in their order

HyperCell = HyperLSTMCell | HyperRNNCell


def weight_changes(
    cell: HyperCell, hyper: Float[Tensor, "time hyper_units"]
) -> dict[str, Float[Tensor, " time-1"]]:
    """By matrix, W_h^i, W_h^g, W_h^f and W_h^o or W_h alone, the norm of its change from step to step.

    `hyper` are the hyper cell's outputs at each step, from zeros before the first.
    """
    if isinstance(cell, HyperLSTMCell):
        scales = row_scales(cell, _source(hyper, cell.hyper_options.embeddings_from))
        rows = cell.weight_h.unflatten(1, (GATES, -1)).norm(dim=0)
        return dict(zip(NAMES, scaled_changes(scales, rows[:, None]), strict=True))
    z = _source(hyper, cell.options.embeddings_from) @ cell.weight_z[:, 0] + cell.bias_z[0]
    return {"h": _generated_changes(cell.of_hidden, z)}


def row_scales(
    cell: HyperLSTMCell, source: Float[Tensor, "time hyper_units"]
) -> Float[Tensor, "gates time units"]:
    """d_h of equation 12, by which the rows of W_h are scaled, from what the embeddings are made of."""
    embeddings = torch.einsum("th,hge->gte", source, cell.weight_z[:, :GATES]) + cell.bias_z[:GATES, None]
    return embeddings @ cell.weight_d[:GATES]


def scaled_changes(
    scales: Float[Tensor, "... time units"], rows: Float[Tensor, "... units"]
) -> Float[Tensor, "... time-1"]:
    """diag(d_t) W - diag(d_t-1) W has the rows of W, each times its d_t - d_t-1: their norms suffice."""
    return (scales.diff(dim=-2) * rows).norm(dim=-1)


def _generated_changes(weight: GeneratedWeight, z: Float[Tensor, "time embedding"]) -> Tensor:
    """Of mixed matrices, the sum over k of z_k W_k, inner products of the W_k suffice."""
    if isinstance(weight, ScaledRows):
        return scaled_changes(z @ weight.weight_d, weight.weight.norm(dim=0))
    assert isinstance(weight, MixedMatrices)
    matrices = weight.weight.unflatten(1, (z.shape[1], -1))
    products = torch.einsum("iku,ilu->kl", matrices, matrices)
    moves = z.diff(dim=0)
    return ((moves @ products) * moves).sum(dim=1).clamp(min=0).sqrt()


def _source(hyper: Tensor, embeddings_from: str) -> Tensor:
    """The output of the hyper cell that each step's embeddings are made of."""
    if embeddings_from == "current":
        return hyper
    return torch.cat([torch.zeros_like(hyper[:1]), hyper[:-1]])
