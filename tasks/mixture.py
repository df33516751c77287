"""What a network says of the pen's next move: a mixture of bivariate Gaussians, and whether it is lifted.

Graves 2013 (arXiv:1308.0850), section 4.1 and equations 16-25, from memory. Everything is finite and
differentiable twice in float32 for any finite output.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

PARTS = 6  # numbers of a component: weight, two means, two deviations, correlation
LARGEST_LOG = 10.0  # bounds of log deviations: e^-10 is below what a pen's tablet resolves
LARGEST_TURN = 8.0  # bound of the correlation before tanh: sqrt(1 - rho^2) is then 7e-4


class Mixture(NamedTuple):
    """Parameters, each [... component] but for the last."""

    log_weight: Tensor
    mean: Float[Tensor, "... component 2"]
    log_deviation: Float[Tensor, "... component 2"]
    turn: Tensor  # the correlation is its tanh
    lift: Float[Tensor, "..."]  # log odds that the pen is lifted after the move


def outputs(components: int) -> int:
    """How many numbers a network gives for each point."""
    return PARTS * components + 1


def mixture(output: Float[Tensor, "... outputs"]) -> Mixture:
    """A network's output as parameters: weights by softmax, deviations by exp, correlations by tanh.

    Beyond the bounds of this file deviations and correlations stay where they are and have no gradient.
    """
    components = output.shape[-1] // PARTS
    weight, mean, deviation, turn, lift = output.split(
        [components, 2 * components, 2 * components, components, 1], dim=-1
    )
    return Mixture(
        log_weight=weight.log_softmax(-1),
        mean=mean.unflatten(-1, (components, 2)),
        log_deviation=deviation.unflatten(-1, (components, 2)).clamp(-LARGEST_LOG, LARGEST_LOG),
        turn=turn.clamp(-LARGEST_TURN, LARGEST_TURN),
        lift=lift.squeeze(-1),
    )


def log_density(said: Mixture, point: Float[Tensor, "... 3"]) -> Float[Tensor, "..."]:
    """log p(dx, dy) + log P(lifted), in nats (eq. 23-26).

    The exponent is written as a sum of squares, dy's own and that of dx given dy: no cancellation near
    correlations of 1.
    """
    scaled = (point[..., None, :2] - said.mean) * torch.exp(-said.log_deviation)
    across, along = scaled.unbind(-1)
    log_rest = math.log(2.0) - said.turn.abs() - F.softplus(-2.0 * said.turn.abs())  # log sqrt(1 - rho^2)
    given = (across - torch.tanh(said.turn) * along) * torch.exp(-log_rest)
    log_normal = -0.5 * (given**2 + along**2) - said.log_deviation.sum(-1) - log_rest - math.log(2 * math.pi)
    moved = torch.logsumexp(said.log_weight + log_normal, dim=-1)
    return moved + point[..., 2] * said.lift - F.softplus(said.lift)


def draw(said: Mixture, rng: Generator, temperature: float) -> Float[Tensor, "batch 3"]:
    """A move from each row's mixture; 1 is the model itself, 0 the likeliest component's mean.

    Between them it is Graves' bias b = 1 / temperature - 1: weights to the power 1 + b, deviations times
    exp(-b) (eq. 61-62). The pen is lifted by its log odds times 1 + b, at 0 if that is likelier than not.
    """
    if temperature == 0.0:
        chosen = said.log_weight.argmax(-1)
        return torch.cat([_of(said.mean, chosen), (said.lift > 0).to(said.mean.dtype)[:, None]], dim=1)
    sharper = 1.0 / temperature
    dtype, device = said.mean.dtype, said.mean.device
    weights = torch.softmax(sharper * said.log_weight, dim=-1).cumsum(-1)
    level, lift = torch.rand(2, len(weights), generator=rng, dtype=torch.float64).to(device)
    chosen = (weights < level[:, None]).sum(-1).clamp(max=weights.shape[-1] - 1)
    noise = torch.randn(len(weights), 2, generator=rng, dtype=torch.float64).to(device, dtype)
    correlation = torch.tanh(_of(said.turn, chosen))
    across = correlation * noise[:, 1] + torch.sqrt(1.0 - correlation**2) * noise[:, 0]
    deviation = torch.exp(_of(said.log_deviation, chosen) - (sharper - 1.0))
    move = _of(said.mean, chosen) + deviation * torch.stack([across, noise[:, 1]], dim=1)
    lifted = lift < torch.sigmoid(sharper * said.lift.double())
    return torch.cat([move, lifted.to(dtype)[:, None]], dim=1)


def _of(parts: Tensor, chosen: Tensor) -> Tensor:
    """Each row's chosen component."""
    return parts[torch.arange(len(chosen), device=chosen.device), chosen]
