"""RNNprop: an LSTM on the directions of Adam and RMSprop (Lv, Jiang and Li 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from metalearn.inner_optimizers import safe_sqrt
from metalearn.learned_optimizers.fused.kernel import Stack
from metalearn.learned_optimizers.fused.step import fusable, fused_step
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.lstm import CoordinateLstm
from metalearn.learned_optimizers.rule_options import RnnPropOptions
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.tree import Tree


class RnnProp(UpdateRule):
    """theta + scale tanh(LSTM(ELU(map(m / sqrt v, g / sqrt v)))) for every coordinate.

    m and v are Adam's moments, their bias corrected, so that no scale of the loss is seen and no step is
    longer than `output_scale`. The paper's augmentations of meta-training (random scaling, convex terms) are
    not the rule's.
    """

    def __init__(self, options: RnnPropOptions, machine: Machine) -> None:
        if len(options.betas) != 2:
            raise UserError(f"rule.betas: got {options.betas}, must be two numbers: of the two moments")
        self.options = options
        self.network = CoordinateLstm(
            options.features, options.layers, options.hidden, options.forget_bias, options.initial
        )
        self.stack = Stack(*self.network[:4], 0.0) if machine.options.fused else None
        self.propose = machine.compile(self._propose)

    def init(self, rng: torch.Generator) -> Tree:
        """The map of the features, `input.weight` [2 features] and `input.bias`; the LSTM and its output."""
        weight = self.network.draw(2, self.options.features, rng)
        return {"input.weight": weight, "input.bias": torch.zeros(len(weight[0])), **self.network.init(rng)}

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:  # noqa: ARG002
        """Moments [problems coordinates], a count of steps and hidden states, all zero."""
        state = self.network.state(theta.numel(), theta)
        return {
            "first": torch.zeros_like(theta),
            "second": torch.zeros_like(theta),
            "steps": theta.new_zeros(len(theta), dtype=torch.float64),
            **{name: leaf.view(*theta.shape, -1) for name, leaf in state.items()},
        }

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:  # noqa: ARG002
        """Moments, then the LSTM."""
        theta, slots = inner.params["theta"], dict(inner.slots)
        moments = {name: slots.pop(name) for name in ("first", "second", "steps")}
        moments, directions = self._directions(moments, grads["theta"])
        state = {name: leaf.flatten(0, 1) for name, leaf in slots.items()}
        output, state = self.propose(meta, directions.flatten(0, 1), state)
        after = {name: leaf.view(*theta.shape, -1) for name, leaf in state.items()}
        step = self.options.output_scale * output.view_as(theta)
        return Inner({"theta": theta + step}, moments | after)

    def _directions(
        self, moments: Tree, grad: Float[Tensor, "problems coordinates"]
    ) -> tuple[Tree, Float[Tensor, "problems coordinates 2"]]:
        """The moments with this gradient in them, and (m, g) over the root of v."""
        betas, steps = self.options.betas, moments["steps"] + 1
        first = torch.lerp(moments["first"], grad, 1 - betas[0])
        second = betas[1] * moments["second"] + (1 - betas[1]) * grad * grad
        corrections = [(1 - beta**steps).to(grad.dtype).unsqueeze(1) for beta in betas]
        root = safe_sqrt(second / corrections[1]) + self.options.epsilon
        directions = torch.stack([first / corrections[0] / root, grad / root], -1)
        return {"first": first, "second": second, "steps": steps}, directions

    def _propose(
        self, meta: Tree, directions: Float[Tensor, "coordinates 2"], state: Tree
    ) -> tuple[Float[Tensor, " coordinates"], Tree]:
        features = F.elu(torch.addmm(meta["input.bias"], directions, meta["input.weight"]))
        if self.stack is not None and fusable(self.stack, features, *state.values(), *meta.values()):
            output, state = fused_step(self.stack, meta, features, state)
        else:
            output, state = self.network.apply(meta, features, state)
        return torch.tanh(output), state
