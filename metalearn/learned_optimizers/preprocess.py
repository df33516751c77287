"""What a learned optimizer sees of a gradient."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def log_sign(gradient: Float[Tensor, "..."], p: float) -> Float[Tensor, "... 2"]:
    """(log|g| / p, sgn g) where |g| >= exp(-p), else (-1, exp(p) g) (Andrychowicz et al. 2016, appendix A).

    Continuous, and its derivative is finite everywhere. The authors' code has p = 5, the paper p = 10.
    """
    logarithm = gradient.abs().clamp_min(math.exp(-p)).log() / p
    sign = (gradient * math.exp(p)).clamp(-1.0, 1.0)
    return torch.stack([logarithm, sign], dim=-1)
