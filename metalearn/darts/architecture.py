"""From alpha to a mixture of operations, and to the strengths that a genotype is read from."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metalearn.darts.config import DartsOptions
from metalearn.darts.relaxation import RELAXATIONS, masked_softmax
from metalearn.darts.space import Choices, Mixture
from metalearn.tree import Tree

Masks = dict[str, Bool[Tensor, "edge operation"]]


class Architecture:
    """The meta-parameters of a search and what they stand for.

    Alpha has a leaf [edge operation] for each kind of cell, named as the kind, and with edge normalisation
    a leaf [edge], named `edges(kind)`. `allowed` says which operations are still in the race; the others
    have weight 0.
    """

    def __init__(self, choices: dict[str, Choices], options: DartsOptions) -> None:
        self.choices, self.options = choices, options
        self.relaxation = RELAXATIONS[options.relaxation.kind](options.relaxation)

    def start(self, rng: torch.Generator) -> Tree:
        """Alpha as `alpha_init` says, on the CPU."""
        scale = self.options.alpha_scale if self.options.alpha_init == "normal" else 0.0
        shapes: dict[str, tuple[int, ...]] = {kind: choice.shape for kind, choice in self.choices.items()}
        if self.options.relaxation.edge_normalisation:
            shapes |= {edges(kind): choice.shape[:1] for kind, choice in self.choices.items()}
        return {name: scale * torch.randn(shape, generator=rng) for name, shape in shapes.items()}

    def mix(self, alpha: Tree, allowed: Masks, progress: float) -> Mixture:
        """The mixture of one pass, differentiable in alpha; what is random draws from torch's generator.

        Where each edge has one operation, which one is read on the host: the host alone decides what is
        launched, and not launching the others is the point.
        """
        weights = {kind: self.relaxation.mix(alpha[kind], allowed[kind], progress) for kind in self.choices}
        running = None
        if self.relaxation.one_path:
            running = {kind: (leaf != 0).tolist() for kind, leaf in weights.items()}
        return Mixture(self._normalised(weights, alpha, allowed), running)

    def strengths(self, alpha: Tree, allowed: Masks) -> Tree:
        """The expected mixture, by kind of cell, [edge operation]."""
        expected = {kind: self.relaxation.strengths(alpha[kind], allowed[kind]) for kind in self.choices}
        return self._normalised(expected, alpha, allowed)

    def penalty(self, alpha: Tree, allowed: Masks) -> Float[Tensor, ""] | None:
        """What the relaxation adds to alpha's loss; None: nothing."""
        return self.relaxation.penalty({kind: alpha[kind] for kind in self.choices}, allowed)

    def _normalised(self, weights: Tree, alpha: Tree, allowed: Masks) -> Tree:
        """Each edge's weights times its share of its node's input (PC-DARTS, Xu et al. 2020, eq. 3)."""
        if not self.options.relaxation.edge_normalisation:
            return weights
        return {
            kind: leaf * edge_shares(alpha[edges(kind)], allowed[kind], self.choices[kind].targets)[:, None]
            for kind, leaf in weights.items()
        }


def alpha_optimizer(alpha: Tree, options: DartsOptions) -> torch.optim.Optimizer:
    """Adam on alpha's leaves; with `joint` the weights' own SGD, whose rate the search sets at each step."""
    if options.joint:
        return torch.optim.SGD(
            alpha.values(), options.learning_rate, options.momentum, weight_decay=options.weight_decay
        )
    return torch.optim.Adam(
        alpha.values(),
        lr=options.alpha_learning_rate,
        betas=(options.alpha_beta1, options.alpha_beta2),
        weight_decay=options.alpha_weight_decay,
    )


def edges(kind: str) -> str:
    """The name of the leaf of a kind's edges."""
    return f"{kind}_edges"


def edge_shares(
    logits: Float[Tensor, " edge"], allowed: Bool[Tensor, "edge operation"], targets: tuple[int, ...]
) -> Float[Tensor, " edge"]:
    """Softmax over the edges into one node; an edge with nothing allowed has no share."""
    nodes = torch.tensor(targets, device=logits.device)
    rivals = (nodes[:, None] == nodes) & allowed.any(dim=-1)
    return masked_softmax(logits.expand(len(targets), -1), rivals).diagonal()


def entropy(strengths: Float[Tensor, "edge operation"]) -> Float[Tensor, ""]:
    """The mean over edges of the entropy of their operations' shares, in nats."""
    shares = strengths / strengths.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(strengths.dtype).tiny)
    return torch.special.entr(shares).sum(dim=-1).mean().abs()  # of one operation alone it is -0
