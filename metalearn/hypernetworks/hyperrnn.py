"""The HyperRNN: a small RNN makes the weights of a large one anew at each step.

Ha, Dai and Le 2017, equations 4 to 8. In the "full" form the weights are mixtures of N_z matrices (eq. 5), in
the "scaled" one the rows of one matrix are scaled (eq. 7 and 8). In both, what a weight does to a vector is
computed without ever making the weight. The paper's misprints are read as its text and the authors'
supercell.py have it: eq. 5 multiplies by x_t, and embeddings come from the hyper cell's current output unless
options choose.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.hypernetworks.config import HyperRnnOptions
from metalearn.hypernetworks.recurrent import Cell, Present, Stack, each, hold, project
from metalearn.hypernetworks.rnn import RNNCell
from metalearn.hypernetworks.sequences import State

SCALE = 0.1  # d at the start (appendix A.2.3)
BIAS_DEVIATION = 0.01  # of W_hb, which embeds for the bias (appendix A.2.3)


class GeneratedWeight(nn.Module, ABC):
    """A weight as a function of an embedding z; z is all ones at the start.

    W(z) v is mixed from products of v with what does not depend on z: those are made for many v at once.
    """

    weight: nn.Parameter  # [inputs products]

    @abstractmethod
    def mix(
        self, z: Float[Tensor, "batch embedding"], products: Float[Tensor, "batch products"]
    ) -> Float[Tensor, "batch units"]:
        """W(z) v from the products v `weight`."""


class ScaledRows(GeneratedWeight):
    """W(z) = diag(W_z z) W (eq. 7). At the start W is orthogonal and every row is scaled by 0.1.

    The paper's rule starts all entries of z alike. They get the same gradients, so they stay alike for ever,
    and z scales as one number would.
    """

    def __init__(self, inputs: int, units: int, embedding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(inputs, units)))
        self.weight_d = nn.Parameter(torch.full((embedding, units), SCALE / embedding))

    def mix(self, z: Tensor, products: Tensor) -> Tensor:
        return (z @ self.weight_d) * products


class MixedMatrices(GeneratedWeight):
    """W(z) = <W_z, z>, the sum over k of z_k W_k (eq. 5).

    The paper gives no start. Ours: W_k = (Q + U_k - mean of U) / N_z with Q and all U_k orthogonal, so that
    the first W(z) is Q, as in an ordinary RNN, while the W_k differ: equal ones would stay equal.
    """

    def __init__(self, inputs: int, units: int, embedding: int) -> None:
        super().__init__()
        first, *others = (nn.init.orthogonal_(torch.empty(inputs, units)) for _ in range(embedding + 1))
        apart = torch.stack(others, dim=1)
        start = (first[:, None] + apart - apart.mean(1, keepdim=True)) / embedding
        self.weight = nn.Parameter(start.flatten(1))

    def mix(self, z: Tensor, products: Tensor) -> Tensor:
        return torch.bmm(z[:, None], products.unflatten(1, (z.shape[1], -1))).squeeze(1)


FORMS = {"scaled": ScaledRows, "full": MixedMatrices}


class Step(NamedTuple):
    """What the loop over time multiplies by, made once a sequence."""

    weight_h: Float[Tensor, "units products+hyper_units"]  # main and hyper side by side
    weight_z: Float[Tensor, "hyper_units 3*embedding"]
    bias_z: Float[Tensor, "3*embedding"]


class HyperRNNCell(Cell):
    """One layer. The state is (h, hyper h). Embeddings are ordered by what they make: W_h, W_x, the bias.

    Start: weights of z_h and z_x 0, their biases 1; the hyper cell's weights orthogonal; the generated bias 0
    (appendix A.2.3, which the paper gives for the HyperLSTM).
    """

    def __init__(self, input_size: int, hidden_size: int, options: HyperRnnOptions) -> None:
        super().__init__()
        self.options = options
        self.sizes = (hidden_size, options.units)
        form, embedding = FORMS[options.form], options.embedding
        self.hyper = RNNCell(input_size + hidden_size, options.units)  # reads [x, h]
        self.of_hidden = form(hidden_size, hidden_size, embedding)
        self.of_input = form(input_size, hidden_size, embedding)
        self.weight_z = nn.Parameter(torch.zeros(options.units, 3, embedding))
        self.bias_z = nn.Parameter(torch.ones(2, embedding))
        self.weight_b = nn.Parameter(torch.zeros(embedding, hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        nn.init.normal_(self.weight_z.data[:, 2], std=BIAS_DEVIATION)

    def scan(
        self,
        x: Tensor,
        state: State,
        scale: Tensor | None = None,
        present: Present = None,
        fused: bool = False,  # noqa: ARG002
    ) -> tuple[Tensor, State]:
        step = self._step()
        hyper_weight_x, _ = self._hyper_weights()
        inputs = project(x, self.of_input.weight, scale).unbind(0)
        hyper_inputs = (project(x, hyper_weight_x, scale) + self.hyper.bias).unbind(0)
        outputs = []
        for here, now, hyper_now in zip(each(present, len(x)), inputs, hyper_inputs, strict=True):
            state = hold(here, self._advance(step, state, now, hyper_now), state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def _hyper_weights(self) -> tuple[Tensor, Tensor]:
        """What the hyper cell multiplies x and the main h by."""
        from_input, from_hidden = self.hyper.weight_x.tensor_split([self.of_input.weight.shape[0]])
        return from_input, from_hidden

    def _step(self) -> Step:
        return Step(
            weight_h=torch.cat([self.of_hidden.weight, self._hyper_weights()[1]], dim=1),
            weight_z=self.weight_z.flatten(1),
            bias_z=torch.cat([self.bias_z, torch.zeros_like(self.bias_z[:1])]).flatten(),
        )

    def _advance(
        self,
        step: Step,
        state: State,
        inputs: Float[Tensor, "batch products"],
        hyper_inputs: Float[Tensor, "batch hyper_units"],
    ) -> State:
        hidden, hyper_hidden = state
        recurrent, to_hyper = (hidden @ step.weight_h).split([inputs.shape[1], hyper_inputs.shape[1]], dim=1)
        total = torch.addmm(hyper_inputs + to_hyper, hyper_hidden, self.hyper.weight_h)
        following = torch.tanh(total)
        source = following if self.options.embeddings_from == "current" else hyper_hidden
        z_h, z_x, z_b = torch.addmm(step.bias_z, source, step.weight_z).chunk(3, dim=1)
        total = self.of_hidden.mix(z_h, recurrent) + self.of_input.mix(z_x, inputs)
        return torch.tanh(total + torch.addmm(self.bias, z_b, self.weight_b)), following


class HyperRNN(Stack):
    """Drop-in for `torch.nn.RNN`: the state is (h, hyper h)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        options: HyperRnnOptions,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        inputs = [input_size] + [hidden_size] * (num_layers - 1)
        super().__init__([HyperRNNCell(size, hidden_size, options) for size in inputs], batch_first, dropout)
