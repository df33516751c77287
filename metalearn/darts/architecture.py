"""From alpha to a mixture of operations, and to the strengths that a genotype is read from."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metalearn.darts.config import DartsOptions
from metalearn.darts.space import Choices, Mixture
from metalearn.tree import Tree

Masks = dict[str, Bool[Tensor, "edge operation"]]


class Architecture:
    """The meta-parameters of a search and what they stand for.

    Alpha has a leaf [edge operation] for each kind of cell. `allowed` says which operations are still
    in the race; the others have weight 0.
    """

    def __init__(self, choices: dict[str, Choices], options: DartsOptions) -> None:
        self.choices, self.options = choices, options

    def start(self, rng: torch.Generator) -> Tree:
        """Alpha as `alpha_init` says, on the CPU."""
        scale = self.options.alpha_scale if self.options.alpha_init == "normal" else 0.0
        return {
            kind: scale * torch.randn(choice.shape, generator=rng) for kind, choice in self.choices.items()
        }

    def mix(self, alpha: Tree, allowed: Masks, progress: float) -> Mixture:  # noqa: ARG002
        """The mixture of one pass, differentiable in alpha; what is random draws from torch's generator."""
        return Mixture(self.strengths(alpha, allowed))

    def strengths(self, alpha: Tree, allowed: Masks) -> Tree:
        """The expected mixture, by kind of cell, [edge operation]."""
        return {kind: masked_softmax(alpha[kind], allowed[kind]) for kind in self.choices}


def masked_softmax(
    logits: Float[Tensor, "edge operation"], allowed: Bool[Tensor, "edge operation"]
) -> Float[Tensor, "edge operation"]:
    """Softmax over the allowed operations of an edge, 0 for the others; zeros where none is allowed."""
    shares = logits.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return torch.where(allowed, shares, 0.0)


def entropy(strengths: Float[Tensor, "edge operation"]) -> Float[Tensor, ""]:
    """The mean over edges of the entropy of their operations' shares, in nats."""
    shares = strengths / strengths.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(strengths.dtype).tiny)
    return -torch.special.xlogy(shares, shares).sum(dim=-1).mean()
