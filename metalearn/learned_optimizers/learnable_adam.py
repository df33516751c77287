"""Adam with learned hyper-parameters."""

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.inner_optimizers import safe_sqrt
from metalearn.learned_optimizers.groups import SIZES, by_size
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rule_options import LearnableAdamOptions
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.tree import Tree


class LearnableAdam(UpdateRule):
    """Adam whose meta-parameters say by how much its hyper-parameters differ from the options' values.

    Meta, [groups] each, all 0 at the start, where it is `inner_optimizers.adam`: `rate` and `epsilon` in the
    logarithm, `first` and `second` (decays) in the log odds; with a schedule `fall`, the logarithm that the
    rate loses in `schedule_steps` steps. Groups: one, or one each for vectors, matrices and kernels.
    """

    def __init__(self, options: LearnableAdamOptions, machine: Machine) -> None:  # noqa: ARG002
        if len(options.betas) != 2:
            raise UserError(f"rule.betas: got {options.betas}, must be two numbers: of the two moments")
        self.options = options

    def init(self, rng: torch.Generator) -> Tree:  # noqa: ARG002
        """Zeros."""
        groups = len(SIZES) if self.options.groups == "size" else 1
        names = ["rate", "first", "second", "epsilon"]
        if self.options.schedule != "none":
            names.append("fall")
        return {name: torch.zeros(groups) for name in names}

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:  # noqa: ARG002
        """Moments of zeros, and each problem's count of steps (float64: its powers correct the bias)."""
        return {
            "first": torch.zeros_like(theta),
            "second": torch.zeros_like(theta),
            "steps": theta.new_zeros(len(theta), dtype=torch.float64),
        }

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:
        """One step of Adam."""
        theta, slots, grad = inner.params["theta"], inner.slots, grads["theta"]
        values = {name: leaf.double() for name, leaf in meta.items()}
        steps = slots["steps"] + 1
        keeps = [_odds(values[name], beta) for name, beta in self._decays()]
        takes = [_odds(-values[name], 1 - beta) for name, beta in self._decays()]
        corrections = [1 - keep ** steps.unsqueeze(1) for keep in keeps]  # [problems groups]

        def at(numbers: Float[Tensor, "... groups"]) -> Float[Tensor, "... coordinates"]:
            return self._placed(numbers.to(theta.dtype), layout)

        first = torch.lerp(slots["first"], grad, at(takes[0]).expand_as(grad))
        second = at(keeps[1]) * slots["second"] + at(takes[1]) * grad * grad
        epsilon = self.options.epsilon * values["epsilon"].exp()
        root = safe_sqrt(second) / at(corrections[1].sqrt()) + at(epsilon)
        moved = theta - at(self._rate(values, slots["steps"]) / corrections[0]) * (first / root)
        return Inner({"theta": moved}, {"first": first, "second": second, "steps": steps})

    def _decays(self) -> list[tuple[str, float]]:
        return list(zip(("first", "second"), self.options.betas, strict=True))

    def _rate(self, values: Tree, steps: Float[Tensor, " problems"]) -> Float[Tensor, "problems groups"]:
        logarithm = values["rate"].expand(len(steps), -1)
        if self.options.schedule != "none":
            logarithm = logarithm - values["fall"] * (steps / self.options.schedule_steps).unsqueeze(1)
        return self.options.learning_rate * logarithm.exp()

    def _placed(
        self, numbers: Float[Tensor, "... groups"], layout: Layout
    ) -> Float[Tensor, "... coordinates"]:
        """Each group's number at its coordinates, or the only one for all [... 1]."""
        if self.options.groups == "single":
            return numbers
        parts: dict[str, Tensor] = dict(zip(SIZES, numbers.split(1, -1), strict=True))
        return layout.spread(torch.cat([parts[group] for group in by_size(layout)], -1))


def _odds(shift: Tensor, share: float) -> Tensor:
    """`share`, its log odds moved by `shift`: exactly itself at 0."""
    return share / (share + (1 - share) * torch.exp(-shift))
