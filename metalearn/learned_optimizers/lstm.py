"""The coordinatewise LSTM: one small network for all coordinates, a hidden state for each."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.learned_optimizers.config import LstmRuleOptions
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.preprocess import log_sign
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.tree import Tree


class CoordinateLstm(NamedTuple):
    """LSTM layers and a linear map to one number, as pure functions of their weights.

    Weights: `lstm.K.weight` [inputs + hidden, 4 hidden] with columns for the input, forget and output gates
    and the candidate; one `lstm.K.bias` [4 hidden] a layer; `linear.weight` [hidden, 1], `linear.bias` [1].
    State: `hidden.K` and `cell.K`, [coordinates, hidden].
    """

    inputs: int
    layers: int
    hidden: int
    forget_bias: float
    initial: str

    def init(self, rng: torch.Generator) -> Tree:
        """Fresh weights, biases 0.

        truncated_normal: deviation 1/sqrt(inputs of the map) (Sonnet 1); uniform: within 1/sqrt(hidden)
        (torch).
        """
        meta = {}
        for layer in range(self.layers):
            inputs = (self.hidden if layer else self.inputs) + self.hidden
            meta[f"lstm.{layer}.weight"] = self._draw(inputs, 4 * self.hidden, rng)
            meta[f"lstm.{layer}.bias"] = torch.zeros(4 * self.hidden)
        return meta | {"linear.weight": self._draw(self.hidden, 1, rng), "linear.bias": torch.zeros(1)}

    def state(self, coordinates: int, like: Tensor) -> Tree:
        """Zeros, of the type and on the device of `like`."""
        names = [f"{part}.{layer}" for layer in range(self.layers) for part in ("hidden", "cell")]
        return {name: like.new_zeros(coordinates, self.hidden) for name in names}

    def apply(
        self, meta: Tree, features: Float[Tensor, "coordinates inputs"], state: Tree
    ) -> tuple[Float[Tensor, " coordinates"], Tree]:
        """One number for each coordinate, and the next state."""
        after: Tree = {}
        for layer in range(self.layers):
            features, cell = self._cell(meta, features, state, layer)
            after[f"hidden.{layer}"], after[f"cell.{layer}"] = features, cell
        output = torch.addmm(meta["linear.bias"], features, meta["linear.weight"])
        return output.squeeze(1), after

    def _cell(self, meta: Tree, features: Tensor, state: Tree, layer: int) -> tuple[Tensor, Tensor]:
        hidden, cell = state[f"hidden.{layer}"], state[f"cell.{layer}"]
        bias = meta[f"lstm.{layer}.bias"] + self._gate_bias(hidden)
        weight = meta[f"lstm.{layer}.weight"]
        gates, candidate = torch.addmm(bias, torch.cat([features, hidden], 1), weight).split(
            [3 * self.hidden, self.hidden], 1
        )
        write, keep, show = torch.sigmoid(gates).chunk(3, 1)
        cell = keep * cell + write * torch.tanh(candidate)
        return show * torch.tanh(cell), cell

    def _gate_bias(self, like: Tensor) -> Tensor:
        gates = like.new_zeros(4, self.hidden)
        gates[1] = self.forget_bias
        return gates.flatten()

    def _draw(self, rows: int, columns: int, rng: torch.Generator) -> Tensor:
        weight = torch.empty(rows, columns)
        if self.initial == "uniform":
            bound = 1 / math.sqrt(self.hidden)
            return nn.init.uniform_(weight, -bound, bound, generator=rng)
        deviation = 1 / math.sqrt(rows)
        return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=rng)


class LstmRule(UpdateRule):
    """theta + scale * LSTM(gradient), all coordinates of all tensors in one product (eq. 1 and 3).

    `machine.compile` fuses the LSTM's step; it is differentiated once, so that this is allowed.
    """

    def __init__(self, options: LstmRuleOptions, machine: Machine) -> None:
        inputs = 2 if options.preprocess == "log_sign" else 1
        self.network = CoordinateLstm(
            inputs, options.layers, options.hidden, options.forget_bias, options.initial
        )
        self.options = options
        self.propose = machine.compile(self.network.apply)

    def init(self, rng: torch.Generator) -> Tree:
        """Fresh LSTM and output map."""
        return self.network.init(rng)

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:  # noqa: ARG002
        """Hidden states of zeros, [problems coordinates hidden]."""
        state = self.network.state(theta.numel(), theta)
        return {name: leaf.view(*theta.shape, -1) for name, leaf in state.items()}

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:  # noqa: ARG002
        """Add the LSTM's output: its sign is learned."""
        theta = inner.params["theta"]
        flat = grads["theta"].reshape(-1)
        seen = self.options.preprocess == "log_sign"
        features = log_sign(flat, self.options.log_sign_p) if seen else flat.unsqueeze(1)
        state = {name: leaf.flatten(0, 1) for name, leaf in inner.slots.items()}
        output, state = self.propose(meta, features, state)
        slots = {name: leaf.view(*theta.shape, -1) for name, leaf in state.items()}
        return Inner({"theta": theta + self.options.output_scale * output.view_as(theta)}, slots)
