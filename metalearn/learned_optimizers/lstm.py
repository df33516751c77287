"""The coordinatewise LSTM: one small network for all coordinates, a hidden state for each."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.learned_optimizers.averaging_cells import averaged
from metalearn.learned_optimizers.config import LstmRuleOptions
from metalearn.learned_optimizers.fused.kernel import Stack
from metalearn.learned_optimizers.fused.step import fusable, fused_step
from metalearn.learned_optimizers.fused.steps import fused_steps
from metalearn.learned_optimizers.groups import CONV, FC, by_code, by_kind, gathered, scattered
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.preprocess import log_sign
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.registry import UserError
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
    averaging: int = 0  # units of each layer that are global averaging cells

    def init(self, rng: torch.Generator) -> Tree:
        """Fresh weights, biases 0.

        truncated_normal: deviation 1/sqrt(inputs of the map) (Sonnet 1); uniform: within 1/sqrt(hidden)
        (torch).
        """
        meta = self.init_layers(rng)
        return meta | {"linear.weight": self.draw(self.hidden, 1, rng), "linear.bias": torch.zeros(1)}

    def init_layers(self, rng: torch.Generator) -> Tree:
        """Fresh weights of the layers alone."""
        meta = {}
        for layer in range(self.layers):
            inputs = (self.hidden if layer else self.inputs) + self.hidden
            meta[f"lstm.{layer}.weight"] = self.draw(inputs, 4 * self.hidden, rng)
            meta[f"lstm.{layer}.bias"] = torch.zeros(4 * self.hidden)
        return meta

    def draw(self, rows: int, columns: int, rng: torch.Generator) -> Tensor:
        """One fresh map."""
        weight = torch.empty(rows, columns)
        if self.initial == "uniform":
            bound = 1 / math.sqrt(self.hidden)
            return nn.init.uniform_(weight, -bound, bound, generator=rng)
        deviation = 1 / math.sqrt(rows)
        return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=rng)

    def state(self, coordinates: int, like: Tensor) -> Tree:
        """Zeros, of the type and on the device of `like`."""
        names = [f"{part}.{layer}" for layer in range(self.layers) for part in ("hidden", "cell")]
        return {name: like.new_zeros(coordinates, self.hidden) for name in names}

    def apply(
        self, meta: Tree, features: Float[Tensor, "coordinates inputs"], state: Tree, problems: int = 1
    ) -> tuple[Float[Tensor, " coordinates"], Tree]:
        """One number for each coordinate, and the next state; averaging cells ask for `problems`."""
        features, after = self.advance(meta, features, state, problems)
        output = torch.addmm(meta["linear.bias"], features, meta["linear.weight"])
        return output.squeeze(1), after

    def advance(
        self, meta: Tree, features: Float[Tensor, "coordinates inputs"], state: Tree, problems: int = 1
    ) -> tuple[Float[Tensor, "coordinates hidden"], Tree]:
        """The last layer's activation, and the next state, without the linear map."""
        after: Tree = {}
        for layer in range(self.layers):
            features, cell = self._cell(meta, features, state, layer)
            features = averaged(features, self.averaging, problems)
            after[f"hidden.{layer}"], after[f"cell.{layer}"] = features, cell
        return features, after

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


class LstmRule(UpdateRule):
    """theta + scale * LSTM(gradient), all coordinates of all tensors in one product (eq. 1 and 3).

    With groups of tensors each has an LSTM of its own, whose names begin with the group's, and averaging
    cells average over a group's coordinates. `machine.compile` fuses the LSTM's step; it is differentiated
    once, so that this is allowed.
    """

    def __init__(self, options: LstmRuleOptions, machine: Machine) -> None:
        if options.averaging > options.hidden:
            raise UserError(
                f"rule.averaging: got {options.averaging} of rule.hidden={options.hidden} units of a layer; "
                "lower the first or raise the second"
            )
        inputs = 2 if options.preprocess == "log_sign" else 1
        self.network = CoordinateLstm(
            inputs, options.layers, options.hidden, options.forget_bias, options.initial, options.averaging
        )
        self.options = options
        self.propose = machine.compile(self.network.apply)
        p = options.log_sign_p if options.preprocess == "log_sign" else 0.0
        stack = Stack(inputs, options.layers, options.hidden, options.forget_bias, p)
        self.stack = stack if machine.options.fused and not options.averaging else None

    def init(self, rng: torch.Generator) -> Tree:
        """Fresh LSTM and output map, for every group."""
        if self.options.groups == "single":
            return self.network.init(rng)
        fresh = {group: self.network.init(rng) for group in (CONV, FC)}
        return {f"{group}.{name}": leaf for group, meta in fresh.items() for name, leaf in meta.items()}

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:
        """Hidden states of zeros, [problems coordinates hidden]."""
        if self.options.groups == "single":
            return self._fresh(theta)
        parts = gathered(theta, layout, self._groups(layout))
        fresh = {group: self._fresh(part) for group, part in parts.items()}
        return {f"{group}.{name}": leaf for group, state in fresh.items() for name, leaf in state.items()}

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:
        """Add the LSTM's output: its sign is learned."""
        theta, grad = inner.params["theta"], grads["theta"]
        if self.options.groups == "single":
            output, slots = self._step(meta, grad, inner.slots)
        else:
            output, slots = self._grouped(meta, grad, inner.slots, layout)
        return Inner({"theta": theta + self.options.output_scale * output}, slots)

    def replays(self, meta: Tree, inner: Inner) -> bool:
        """Whether the kernel fits, and one LSTM serves all coordinates."""
        if self.stack is None or self.options.groups != "single":
            return False
        return fusable(self.stack, *inner.params.values(), *inner.slots.values(), *meta.values())

    def replay(self, meta: Tree, start: Inner, grads: Tree, after: Inner) -> Inner:
        """Nothing of the steps is kept: the kernel's way back takes them again."""
        assert self.stack is not None
        return fused_steps(self.stack, self.options.output_scale, meta, start, grads["theta"], after)

    def _step(
        self, meta: Tree, grad: Float[Tensor, "problems coordinates"], slots: Tree
    ) -> tuple[Tensor, Tree]:
        """One LSTM's output for its coordinates, and its next memory."""
        flat = grad.reshape(-1)
        seen = self.options.preprocess == "log_sign"
        state = {name: leaf.flatten(0, 1) for name, leaf in slots.items()}
        if self.stack is not None and fusable(self.stack, flat, *state.values(), *meta.values()):
            output, state = fused_step(self.stack, meta, flat if seen else flat.unsqueeze(1), state)
        else:
            features = log_sign(flat, self.options.log_sign_p) if seen else flat.unsqueeze(1)
            output, state = self.propose(meta, features, state, len(grad))
        return output.view_as(grad), {name: leaf.view(*grad.shape, -1) for name, leaf in state.items()}

    def _grouped(
        self, meta: Tree, grad: Float[Tensor, "problems coordinates"], slots: Tree, layout: Layout
    ) -> tuple[Tensor, Tree]:
        """Each group's coordinates through its own LSTM."""
        groups, outputs, after = self._groups(layout), {}, {}
        for group, part in gathered(grad, layout, groups).items():
            outputs[group], state = self._step(_of(group, meta), part, _of(group, slots))
            after |= {f"{group}.{name}": leaf for name, leaf in state.items()}
        return scattered(outputs, layout, groups), after

    def _groups(self, layout: Layout) -> list[str]:
        return (by_kind if self.options.groups == "kind" else by_code)(layout)

    def _fresh(self, theta: Float[Tensor, "problems coordinates"]) -> Tree:
        state = self.network.state(theta.numel(), theta)
        return {name: leaf.view(*theta.shape, -1) for name, leaf in state.items()}


def _of(group: str, tree: Tree) -> Tree:
    """The leaves of one group by their own names."""
    start = f"{group}."
    return {name.removeprefix(start): leaf for name, leaf in tree.items() if name.startswith(start)}
