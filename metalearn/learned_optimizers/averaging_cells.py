"""Global averaging cells: what lets the coordinates of a problem know of each other."""

import torch
from jaxtyping import Float
from torch import Tensor


def averaged(
    activation: Float[Tensor, "rows hidden"], cells: int, problems: int
) -> Float[Tensor, "rows hidden"]:
    """The first `cells` units at their mean over the coordinates of each problem, the others unchanged.

    Rows are the coordinates of one problem after those of the other. What comes out is what the layer itself
    sees at the next step and the next layer at this one (Andrychowicz et al. 2016, appendix D).
    """
    if not cells:
        return activation
    shared = activation[:, :cells].view(problems, -1, cells)
    means = shared.mean(1, keepdim=True).expand_as(shared).reshape(-1, cells)
    return torch.cat([means, activation[:, cells:]], 1)
