"""NTM-BFGS: coordinates that share a memory as BFGS shares its inverse Hessian."""

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.lstm import CoordinateLstm
from metalearn.learned_optimizers.memory import MatrixMemory, Memory, PairMemory
from metalearn.learned_optimizers.preprocess import log_sign
from metalearn.learned_optimizers.rule_options import NtmBfgsOptions
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.tree import Tree


class NtmBfgs(UpdateRule):
    """A coordinatewise LSTM with averaging cells that reads and writes an operator on its coordinates.

    For each coordinate it sees the gradient and what was read at the step before, and gives the update, its
    number of the vector that is read, and of two vectors for every write: i = M r, then M + sum a b^T. With
    memory=pairs only the last `history` steps' writes are kept (Andrychowicz et al. 2016, appendix D; what
    the memory begins as is not said there). With one read head, three writes and averaging cells for s.y and
    y.My the skeleton can be BFGS: M' = M - rho s (My)^T - rho (My) s^T + (rho + rho^2 y.My) s s^T.
    """

    def __init__(self, options: NtmBfgsOptions, machine: Machine) -> None:
        if options.averaging > options.hidden:
            raise UserError(
                f"rule.averaging: got {options.averaging} of rule.hidden={options.hidden} units of a layer; "
                "lower the first or raise the second"
            )
        self.options = options
        inputs = 4 if options.preprocess == "log_sign" else 2
        self.network = CoordinateLstm(
            inputs, options.layers, options.hidden, options.forget_bias, options.initial, options.averaging
        )
        self.memory = _memory(options)
        self.propose = machine.compile(self._propose)

    def init(self, rng: torch.Generator) -> Tree:
        """The LSTM; `heads.weight` [hidden, 2 + 2 writes] and `heads.bias`: update, read vector, a's, b's."""
        outputs = 2 + 2 * self.options.writes
        layers = self.network.init_layers(rng)
        weight = self.network.draw(self.options.hidden, outputs, rng)
        return {**layers, "heads.weight": weight, "heads.bias": torch.zeros(outputs)}

    def slots(self, theta: Float[Tensor, "problems coordinates"], layout: Layout) -> Tree:  # noqa: ARG002
        """Hidden states and what was read, zeros; the memory. Raises UserError for too large a matrix."""
        memory = self.memory.fresh(theta)
        state = self.network.state(theta.numel(), theta)
        states = {name: leaf.view(*theta.shape, -1) for name, leaf in state.items()}
        return {"seen": torch.zeros_like(theta), **memory, **states}

    def update(self, meta: Tree, inner: Inner, grads: Tree, layout: Layout) -> Inner:  # noqa: ARG002
        """The controller, then read, then write."""
        theta, slots = inner.params["theta"], inner.slots
        names = [name for name in slots if name.startswith(("hidden.", "cell."))]
        state = {name: slots[name].flatten(0, 1) for name in names}
        seen = torch.stack([grads["theta"], slots["seen"]], -1).flatten(0, 1)
        heads, state = self.propose(meta, seen, state, len(theta))
        step, vector, left, right = self._split(heads.view(*theta.shape, -1).mT)
        seen = self.memory.read(slots, vector).to(theta.dtype)
        after = {"seen": seen, **self.memory.write(slots, left, right)}
        after |= {name: leaf.view(*theta.shape, -1) for name, leaf in state.items()}
        return Inner({"theta": theta + self.options.output_scale * step}, after)

    def _split(self, heads: Float[Tensor, "problems outputs coordinates"]) -> tuple[Tensor, ...]:
        writes = self.options.writes
        step, vector, left, right = heads.split([1, 1, writes, writes], 1)
        return step.squeeze(1), vector.squeeze(1), left, right

    def _propose(
        self, meta: Tree, seen: Float[Tensor, "coordinates 2"], state: Tree, problems: int
    ) -> tuple[Float[Tensor, "coordinates outputs"], Tree]:
        if self.options.preprocess == "log_sign":
            seen = log_sign(seen, self.options.log_sign_p).flatten(1)
        hidden, state = self.network.advance(meta, seen, state, problems)
        return torch.addmm(meta["heads.bias"], hidden, meta["heads.weight"]), state


def _memory(options: NtmBfgsOptions) -> Memory:
    if options.memory == "matrix":
        return MatrixMemory(options.first == "identity")
    return PairMemory(options.first == "identity", options.history * options.writes)
