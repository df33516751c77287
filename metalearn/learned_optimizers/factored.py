"""Second moments as a product of row and column means (Shazeer and Stern 2018, Adafactor)."""

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.layout import Layout
from metalearn.registry import UserError


class Factors:
    """The rows and columns of all tensors of a layout: along a tensor's first dimension, and along the rest.

    A vector is one column, so that its product of means is the vector itself.
    """

    def __init__(self, layout: Layout) -> None:
        shapes = layout.shapes.values()
        self.rows = [shape[0] if shape else 1 for shape in shapes]
        if 0 in self.rows:
            raise UserError(
                "rule.factored: a parameter without elements has no means; set rule.factored=false"
            )
        self.columns = [size // rows for size, rows in zip(layout.sizes, self.rows, strict=True)]
        self.sizes = layout.sizes

    def means(
        self, x: Float[Tensor, "problems coordinates"]
    ) -> tuple[Float[Tensor, "problems rows"], Float[Tensor, "problems columns"]]:
        """The means of each row and of each column."""
        grids = [
            part.unflatten(-1, (rows, columns))
            for part, rows, columns in zip(x.split(self.sizes, -1), self.rows, self.columns, strict=True)
        ]
        return torch.cat([grid.mean(-1) for grid in grids], -1), torch.cat(
            [grid.mean(-2) for grid in grids], -1
        )

    def product(
        self, rows: Float[Tensor, "problems rows"], columns: Float[Tensor, "problems columns"]
    ) -> Float[Tensor, "problems coordinates"]:
        """Row mean times column mean over their tensor's mean, at each coordinate; 0 in a tensor of zeros."""
        parts = []
        for row, column in zip(rows.split(self.rows, -1), columns.split(self.columns, -1), strict=True):
            mean = row.mean(-1, keepdim=True)
            share = row / torch.where(mean > 0, mean, 1.0)
            parts.append((share.unsqueeze(-1) * column.unsqueeze(-2)).flatten(-2))
        return torch.cat(parts, -1)
