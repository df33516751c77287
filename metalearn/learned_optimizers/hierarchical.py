"""A hierarchy of recurrent networks: coordinates, tensors, the whole problem (Wichrowska et al. 2017)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from metalearn.inner_optimizers import safe_sqrt
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rule_options import HierarchicalOptions
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.tree import Tree

LEVELS = ("coordinate", "tensor", "global")


class Hierarchical(UpdateRule):
    """A gated recurrent unit for every coordinate, one for every tensor, one for the problem.

    Of a gradient the coordinates see only what no scale of the loss changes: momenta on several timescales
    over the roots of their own mean squares, and the logarithms of these against their mean over timescales;
    and the log learning rate against its mean over the problem. The mean state of a tensor's coordinates
    goes up to the tensor, of the tensors to the problem; each level's state goes down as a bias of the gates
    below. A coordinate gives a direction (scaled to root mean square 1 over its tensor), a change of its log
    rate against a running average of it, and the decays of the next step's momenta and mean squares.

    From the paper as remembered. Left out: gradients at a point ahead of the parameters ("attention"), which
    would need a second place for the loss; a start at a random learning rate, here an option's number.
    """

    def __init__(self, options: HierarchicalOptions, machine: Machine) -> None:  # noqa: ARG002
        self.options = options
        sizes = (options.hidden, options.tensor_hidden, options.global_hidden)
        self.hidden = dict(zip(LEVELS, sizes, strict=True))
        self.inputs = {"coordinate": 2 * options.timescales + 1, "tensor": sizes[0], "global": sizes[1]}

    def init(self, rng: torch.Generator) -> Tree:
        """For each level LEVEL.weight [inputs + hidden, 3 hidden] (reset, update, candidate) and .bias.

        LEVEL.down [hidden of the level above, 3 hidden]; the coordinates' `direction`, `rate` and `decays`;
        `rate_memory`. All that changes the rate or the decays is 0, which leaves them at the options'.
        """
        meta: Tree = {}
        for level, above in zip(LEVELS, (*LEVELS[1:], None), strict=True):
            size = self.hidden[level]
            meta[f"{level}.weight"] = self._draw(self.inputs[level] + size, 3 * size, rng)
            meta[f"{level}.bias"] = torch.zeros(3 * size)
            if above is not None:
                meta[f"{level}.down"] = self._draw(self.hidden[above], 3 * size, rng)
        size, decay, memory = self.options.hidden, self.options.decay, self.options.rate_memory
        meta["direction.weight"] = self._draw(size, 1, rng)
        meta["rate.weight"] = torch.zeros(size, 1)
        meta["decays.weight"] = torch.zeros(size, 2)
        meta["decays.bias"] = torch.full((2,), math.log(decay / (1 - decay)))
        meta["rate_memory"] = torch.tensor([math.log(memory / (1 - memory))])
        return meta

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:
        """Momenta and mean squares [problems coordinates timescales], log rates, and three levels' states."""
        many = (*theta.shape, self.options.timescales)
        rows = ((theta.shape[1],), (len(layout.sizes),), ())
        states = {
            f"hidden.{level}": theta.new_zeros(len(theta), *count, self.hidden[level])
            for level, count in zip(LEVELS, rows, strict=True)
        }
        start = theta.new_full(theta.shape, math.log(self.options.learning_rate))
        decays = theta.new_full((*theta.shape, 2), math.log(self.options.decay / (1 - self.options.decay)))
        return {
            "momenta": theta.new_zeros(many),
            "squares": theta.new_zeros(many),
            "decays": decays,
            "rate": start,
            "rate_mean": start.clone(),
            **states,
        }

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:
        """Momenta, the three levels from below, then the step."""
        theta, slots = inner.params["theta"], inner.slots
        momenta, squares = self._accumulated(slots, grads["theta"])
        states = self._climb(meta, self._features(momenta, squares, slots["rate"]), slots, layout)
        hidden = states["hidden.coordinate"]
        direction = (hidden @ meta["direction.weight"]).squeeze(-1)
        root = layout.spread(safe_sqrt(layout.means(direction * direction)))
        unit = direction / torch.where(root > 0, root, 1.0)
        rate = slots["rate_mean"] + (hidden @ meta["rate.weight"]).squeeze(-1)
        keep = torch.sigmoid(meta["rate_memory"])
        after = {
            "momenta": momenta,
            "squares": squares,
            "decays": hidden @ meta["decays.weight"] + meta["decays.bias"],
            "rate": rate,
            "rate_mean": keep * slots["rate_mean"] + (1 - keep) * rate,
        }
        return Inner({"theta": theta - rate.exp() * unit}, after | states)

    def _accumulated(
        self, slots: Tree, grad: Float[Tensor, "problems coordinates"]
    ) -> tuple[
        Float[Tensor, "problems coordinates timescales"], Float[Tensor, "problems coordinates timescales"]
    ]:
        """Momenta of the gradient, mean squares of the momenta; timescale s keeps sigmoid(decay)^(2^-s)."""
        slowness = 2.0 ** -torch.arange(self.options.timescales, device=grad.device, dtype=grad.dtype)
        logarithms = (
            F.logsigmoid(slots["decays"]).unsqueeze(-1) * slowness
        )  # [problems coordinates 2 timescales]
        keeps, takes = logarithms.exp().unbind(2), (-torch.expm1(logarithms)).unbind(2)
        momenta = keeps[0] * slots["momenta"] + takes[0] * grad.unsqueeze(-1)
        return momenta, keeps[1] * slots["squares"] + takes[1] * momenta * momenta

    def _features(
        self, momenta: Tensor, squares: Tensor, rate: Float[Tensor, "problems coordinates"]
    ) -> Float[Tensor, "problems coordinates inputs"]:
        """What a coordinate sees; nothing of it changes with the scale of the loss."""
        root = safe_sqrt(squares)
        scaled = momenta / torch.where(root > 0, root, 1.0)
        logarithms = squares.clamp_min(torch.finfo(squares.dtype).tiny).log()
        relative = logarithms - logarithms.mean(-1, keepdim=True)
        return torch.cat([scaled, relative, (rate - rate.mean(1, keepdim=True)).unsqueeze(-1)], -1)

    def _climb(
        self, meta: Tree, features: Float[Tensor, "problems coordinates inputs"], slots: Tree, layout: Layout
    ) -> Tree:
        """The next states from the coordinates upwards, each under the last state of the level above."""
        coordinate, tensor, whole = (slots[f"hidden.{level}"] for level in LEVELS)
        below = layout.spread(tensor @ meta["coordinate.down"], 1)
        coordinate = _unit(meta, "coordinate", features, coordinate, below)
        below = (whole @ meta["tensor.down"]).unsqueeze(1)
        tensor = _unit(meta, "tensor", layout.means(coordinate, 1), tensor, below)
        whole = _unit(meta, "global", tensor.mean(1), whole, None)
        return dict(zip((f"hidden.{level}" for level in LEVELS), (coordinate, tensor, whole), strict=True))

    def _draw(self, rows: int, columns: int, rng: torch.Generator) -> Tensor:
        return torch.randn(rows, columns, generator=rng) * (self.options.initial_scale / math.sqrt(rows))


def _unit(
    meta: Tree,
    level: str,
    inputs: Float[Tensor, "... inputs"],
    hidden: Float[Tensor, "... hidden"],
    below: Float[Tensor, "... gates"] | None,
) -> Float[Tensor, "... hidden"]:
    """The next state of a gated recurrent unit (Cho et al. 2014) with a bias from above."""
    size = hidden.shape[-1]
    bias = meta[f"{level}.bias"] if below is None else meta[f"{level}.bias"] + below
    weight = meta[f"{level}.weight"]
    gates = torch.cat([inputs, hidden], -1) @ weight[:, : 2 * size] + bias[..., : 2 * size]
    reset, renew = torch.sigmoid(gates).chunk(2, -1)
    candidate = torch.cat([inputs, reset * hidden], -1) @ weight[:, 2 * size :] + bias[..., 2 * size :]
    return hidden + renew * (torch.tanh(candidate) - hidden)
