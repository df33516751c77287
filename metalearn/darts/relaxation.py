"""Relaxations of the choice among an edge's operations: alpha to weights, and to strengths."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from metalearn.darts.config import RelaxationOptions
from metalearn.registry import UserError
from metalearn.tree import Tree

Alpha = Float[Tensor, "edge operation"]
Allowed = Bool[Tensor, "edge operation"]
Weights = Float[Tensor, "edge operation"]


class Relaxation(ABC):
    """How one kind of cell's alpha becomes weights of its operations.

    What is not allowed has weight 0 and takes no gradient, an edge with nothing allowed is all zeros. Random
    weights draw from torch's global generator.
    """

    one_path = False  # whether an edge has one weight other than 0, so that nothing else need run
    penalised = False  # whether it has a penalty

    def __init__(self, options: RelaxationOptions) -> None:
        self.options = options
        if options.penalty and not self.penalised:
            raise UserError(
                f"method.relaxation.penalty: got {options.penalty}, {options.kind} has none; set it to 0, or "
                "choose relaxation.kind=sigmoid or dirichlet"
            )

    @abstractmethod
    def mix(self, alpha: Alpha, allowed: Allowed, progress: float) -> Weights:
        """Weights of one pass; `progress` is how far the search is, 0 to 1."""

    @abstractmethod
    def strengths(self, alpha: Alpha, allowed: Allowed) -> Weights:
        """The expected weights."""

    @abstractmethod
    def penalty(self, alpha: Tree, allowed: dict[str, Allowed]) -> Float[Tensor, ""] | None:
        """What alpha's loss gets added, over all kinds of cell; None: nothing."""

    def temperature(self, progress: float) -> float:
        """From the first to the final one, linearly."""
        start, end = self.options.temperature, self.options.final_temperature
        return start + (end - start) * progress


class Categorical(Relaxation):
    """Operations compete: their expected weights are a softmax."""

    def strengths(self, alpha: Alpha, allowed: Allowed) -> Weights:
        """Softmax."""
        return masked_softmax(alpha, allowed)

    def penalty(self, alpha: Tree, allowed: dict[str, Allowed]) -> None:
        """None."""


class Softmax(Categorical):
    """The mixture is the softmax (Liu et al. 2019, eq. 2)."""

    def mix(self, alpha: Alpha, allowed: Allowed, progress: float) -> Weights:  # noqa: ARG002
        """Softmax."""
        return masked_softmax(alpha, allowed)


class Gumbel(Categorical):
    """One operation an edge, drawn from the softmax by the Gumbel-max trick (GDAS, Dong and Yang 2019).

    Only it runs, with weight 1. Backward, its weight counts as the soft one, softmax((log p + noise) /
    temperature): the straight-through estimator, biased, the less the lower the temperature. Operations
    that do not run give alpha no signal of their own (the authors' code adds their weights, all 0, to the
    output; the paper does not).
    """

    one_path = True

    def mix(self, alpha: Alpha, allowed: Allowed, progress: float) -> Weights:
        """Exact zeros and ones, with the gradient of the soft weights."""
        soft = _concrete(alpha, allowed, self.temperature(progress))
        hard = one_hot(soft.argmax(dim=-1), soft.shape[-1]) * allowed
        return hard + (soft - soft.detach())


class Concrete(Categorical):
    """Soft Gumbel weights that harden as the temperature falls (SNAS, Xie et al. 2019, eq. 6)."""

    def mix(self, alpha: Alpha, allowed: Allowed, progress: float) -> Weights:
        """softmax((log p + noise) / temperature)."""
        return _concrete(alpha, allowed, self.temperature(progress))


class Sigmoid(Relaxation):
    """Operations do not compete: each has a weight of its own (FairDARTS, Chu et al. 2020).

    A genotype still takes a node's two strongest edges; the paper also drops those under a threshold (0.85 in
    the authors' code), which leaves nodes of fewer edges than a genotype has.
    """

    penalised = True

    def mix(self, alpha: Alpha, allowed: Allowed, progress: float) -> Weights:  # noqa: ARG002
        """Sigmoid."""
        return alpha.sigmoid() * allowed

    def strengths(self, alpha: Alpha, allowed: Allowed) -> Weights:
        """Sigmoid."""
        return alpha.sigmoid() * allowed

    def penalty(self, alpha: Tree, allowed: dict[str, Allowed]) -> Float[Tensor, ""] | None:
        """The zero-one loss: minus the mean square of the distance to 1/2."""
        if not self.options.penalty:
            return None
        masks = torch.cat([allowed[kind].flatten() for kind in alpha])
        squares = (torch.cat([leaf.flatten() for leaf in alpha.values()]).sigmoid() - 0.5).square()
        return -self.options.penalty * (squares * masks).sum() / masks.sum().clamp_min(1)


class Dirichlet(Relaxation):
    """Weights are a draw from Dirichlet(elu(alpha) + 1) (DrNAS, Chen et al. 2021).

    Gamma variates with pathwise gradients, normalised over the allowed operations: this is the Dirichlet of
    these alone. In float64, since small concentrations give very small variates. It is differentiable once.
    The penalty is the divergence to Dirichlet(1), summed over edges; the authors' default is instead the
    squared length of alpha, which is `method.alpha_weight_decay`.
    """

    penalised = True

    def mix(self, alpha: Alpha, allowed: Allowed, progress: float) -> Weights:  # noqa: ARG002
        """A draw on the simplex of the allowed operations of each edge."""
        concentration = _concentration(alpha.double())
        # validation would read from the device
        variates = torch.distributions.Gamma(concentration, torch.ones_like(concentration), False).rsample()
        variates = variates * allowed
        return (variates / _total(variates)).to(alpha)

    def strengths(self, alpha: Alpha, allowed: Allowed) -> Weights:
        """The mean."""
        concentration = _concentration(alpha) * allowed
        return concentration / _total(concentration)

    def penalty(self, alpha: Tree, allowed: dict[str, Allowed]) -> Float[Tensor, ""] | None:
        """The Kullback-Leibler divergence from the prior."""
        if not self.options.penalty:
            return None
        divergences = [_divergence(leaf, allowed[kind]).sum() for kind, leaf in alpha.items()]
        return self.options.penalty * torch.stack(divergences).sum()


RELAXATIONS: dict[str, type[Relaxation]] = {
    "softmax": Softmax,
    "gumbel": Gumbel,
    "concrete": Concrete,
    "sigmoid": Sigmoid,
    "dirichlet": Dirichlet,
}


def masked_softmax(logits: Alpha, allowed: Allowed) -> Weights:
    """Softmax over the allowed operations of an edge, 0 for the others; zeros where none is allowed."""
    barred = ~allowed & allowed.any(dim=-1, keepdim=True)  # a row of -inf alone would give NaN
    shares = logits.masked_fill(barred, -math.inf).softmax(dim=-1)
    return torch.where(allowed, shares, 0.0)


def _concrete(alpha: Alpha, allowed: Allowed, temperature: float) -> Weights:
    """A draw of the concrete distribution; its largest entry is a draw of the softmax."""
    waits = torch.empty_like(alpha).exponential_().clamp_min(torch.finfo(alpha.dtype).tiny)
    return masked_softmax((alpha - waits.log()) / temperature, allowed)


def _concentration(alpha: Alpha) -> Alpha:
    """elu(alpha) + 1, without the rounding of 1 - 1 far below 0."""
    return torch.where(alpha > 0, alpha + 1, alpha.clamp_max(0).exp())


def _total(parts: Weights) -> Float[Tensor, "edge 1"]:
    """The sum over an edge's operations, above 0 also where there are none."""
    return parts.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(parts.dtype).tiny)


def _divergence(alpha: Alpha, allowed: Allowed) -> Float[Tensor, " edge"]:
    """KL(Dirichlet(concentration) || Dirichlet(1)) over the allowed operations of each edge."""
    number, some = allowed.sum(dim=-1), allowed.any(dim=-1)
    parts = torch.where(allowed, _concentration(alpha), 1.0)
    total = torch.where(some, (parts * allowed).sum(dim=-1), 1.0)
    excess = (parts - 1) * (parts.digamma() - total.digamma()[:, None]) * allowed
    prior = number.clamp_min(1).to(alpha).lgamma()
    return total.lgamma() - (parts.lgamma() * allowed).sum(dim=-1) - prior + excess.sum(dim=-1)
