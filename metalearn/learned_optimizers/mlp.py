"""A very small perceptron for every coordinate, on momenta and root mean squares (Metz et al. 2022)."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.inner_optimizers import safe_sqrt
from metalearn.learned_optimizers.factored import Factors
from metalearn.learned_optimizers.fused.perceptron import Perceptron, Place, fusable, fused_perceptron
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rule_options import MlpRuleOptions
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.tree import Tree


class MlpRule(UpdateRule):
    """theta - step_multiplier * direction * exp(magnitude_multiplier * magnitude), both a perceptron's.

    Features of a coordinate: gradient, parameter, root mean square gradient and its inverse, momenta, and
    momenta over the root; with `factored` also the inverse root of the row-and-column second moment, and
    gradient and momenta times it. Each is divided by its root mean square over the coordinate's tensor, so
    that no scale of the loss is seen. Time, tanh(steps / timescale - 1), is the same for all coordinates and
    enters as a bias. Rows of feature weights: `layer.0.weight` [features + timescales, hidden].
    """

    def __init__(self, options: MlpRuleOptions, machine: Machine) -> None:
        self.options = options
        self.features = 4 + 2 * len(options.decays) + (2 + len(options.decays)) * options.factored
        self.propose = machine.compile(self._propose)
        self.fused = machine.options.fused and not options.factored

    def init(self, rng: torch.Generator) -> Tree:
        """Maps of deviation 1/sqrt(inputs), truncated at two of them; biases 0."""
        widths = [self.features + len(self.options.timescales), *self.options.hidden, 2]
        meta = {}
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            deviation, weight = 1 / math.sqrt(inputs), torch.empty(inputs, outputs)
            nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=rng)
            meta |= {f"layer.{layer}.weight": weight, f"layer.{layer}.bias": torch.zeros(outputs)}
        return meta

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:
        """Momenta [problems decays coordinates], mean squares and a count of steps, all zero."""
        count, size = theta.shape
        slots = {
            "momenta": theta.new_zeros(count, len(self.options.decays), size),
            "square": torch.zeros_like(theta),
            "steps": theta.new_zeros(count, dtype=torch.float64),
        }
        if self.options.factored:
            slots["rows"], slots["columns"] = Factors(layout).means(torch.zeros_like(theta))
        return slots

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:
        """Momenta and mean squares, then the perceptron."""
        theta, grad, slots = inner.params["theta"], grads["theta"], inner.slots
        if self.fused and fusable(theta, grad, slots["momenta"], slots["square"], *meta.values()):
            return self._at_once(meta, inner, grad, layout)
        decays = theta.new_tensor(self.options.decays).unsqueeze(1)
        after = {
            "momenta": torch.lerp(grad.unsqueeze(1), slots["momenta"], decays),
            "square": self._kept(slots["square"], grad * grad),
            "steps": slots["steps"] + 1,
        }
        features = self._features(theta, grad, after)
        if self.options.factored:
            more = self._factored(grad, slots, after, layout)
            features = torch.cat([features, more], 1)
        roots = safe_sqrt(layout.means(features * features))
        seen = features / layout.spread(torch.where(roots == 0, 1.0, roots))
        step = self.propose(meta, seen, self._time(slots["steps"], theta))
        return Inner({"theta": theta - step}, after)

    def _at_once(self, meta: Tree, inner: Inner, grad: Tensor, layout: Layout) -> Inner:
        """Without a graph, by the kernel."""
        options, slots, theta = self.options, inner.slots, inner.params["theta"]
        weight, time = meta["layer.0.weight"], self._time(slots["steps"], theta)
        maps = [weight[: self.features], meta["layer.0.bias"] + time @ weight[self.features :]]
        for layer in range(1, len(options.hidden) + 1):
            maps += [meta[f"layer.{layer}.weight"], meta[f"layer.{layer}.bias"]]
        numbers = (options.epsilon, options.step_multiplier, options.magnitude_multiplier)
        rule = Perceptron(options.decays, options.square_decay, *numbers)
        place = Place(theta, slots["momenta"], slots["square"])
        after = fused_perceptron(rule, maps, layout.sizes, place, grad)
        memory = {"momenta": after.momenta, "square": after.square, "steps": slots["steps"] + 1}
        return Inner({"theta": after.theta}, memory)

    def _kept(self, old: Tensor, new: Tensor) -> Tensor:
        return self.options.square_decay * old + (1 - self.options.square_decay) * new

    def _features(
        self, theta: Tensor, grad: Tensor, state: Tree
    ) -> Float[Tensor, "problems features coordinates"]:
        root = safe_sqrt(state["square"])
        inverse = 1 / (root + self.options.epsilon)
        single = torch.stack([grad, theta, root, inverse], 1)
        return torch.cat([single, state["momenta"], state["momenta"] * inverse.unsqueeze(1)], 1)

    def _factored(
        self, grad: Tensor, slots: Tree, after: Tree, layout: Layout
    ) -> Float[Tensor, "problems features coordinates"]:
        """Adds the next row and column means to `after`."""
        factors = Factors(layout)
        rows, columns = factors.means(grad * grad)
        after["rows"] = self._kept(slots["rows"], rows)
        after["columns"] = self._kept(slots["columns"], columns)
        inverse = 1 / (safe_sqrt(factors.product(after["rows"], after["columns"])) + self.options.epsilon)
        scaled = torch.cat([grad.unsqueeze(1), after["momenta"]], 1) * inverse.unsqueeze(1)
        return torch.cat([inverse.unsqueeze(1), scaled], 1)

    def _time(self, steps: Tensor, like: Tensor) -> Float[Tensor, "problems timescales"]:
        scales = steps.new_tensor(self.options.timescales)
        return torch.tanh(steps.unsqueeze(1) / scales - 1).to(like.dtype)

    def _propose(
        self,
        meta: Tree,
        features: Float[Tensor, "problems features coordinates"],
        time: Float[Tensor, "problems timescales"],
    ) -> Float[Tensor, "problems coordinates"]:
        """The perceptron, its units in rows and the coordinates in columns: that is how products are fast."""
        weight = meta["layer.0.weight"]
        bias = meta["layer.0.bias"] + time @ weight[self.features :]
        x = weight[: self.features].mT @ features + bias.unsqueeze(2)
        for layer in range(1, len(self.options.hidden) + 1):
            weight, bias = meta[f"layer.{layer}.weight"], meta[f"layer.{layer}.bias"]
            x = weight.mT @ F.relu(x) + bias.unsqueeze(1)
        direction, magnitude = x.unbind(1)
        scale = torch.exp(self.options.magnitude_multiplier * magnitude)
        return self.options.step_multiplier * direction * scale
