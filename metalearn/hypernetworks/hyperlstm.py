"""The HyperLSTM: a small LSTM scales the rows of a large one's weights anew at each step.

Ha, Dai and Le 2017, equations 10-13 and appendices A.2.2, A.2.3. Where paper and the authors' supercell.py
disagree, options choose.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.fused.hyperlstm import HyperLSTMScan, Plan, Weights
from metalearn.hypernetworks.fused.sequence import Times, fusable, norm_of
from metalearn.hypernetworks.lstm import LSTMCell
from metalearn.hypernetworks.recurrent import (
    GATES,
    Affine,
    Cell,
    Norms,
    Present,
    Stack,
    State,
    advance,
    by_gate,
    dropout_masks,
    each,
    gate_constants,
    hold,
    normalise,
    project,
    start_weights,
)

SCALED = 2  # weights of h and of x: the rows of both are scaled
GENERATED = SCALED + 1  # and the bias is made
SCALE = 0.1  # d at the start (appendix A.2.3)
BIAS_DEVIATION = 0.01  # of W_hb, which embeds for the bias (appendix A.2.3)


class Step(NamedTuple):
    """What the loop over time multiplies by, made once a sequence."""

    weight_h: Float[Tensor, "units gates*units+gates*hyper_units"]  # main and hyper side by side
    weight_z: Float[Tensor, "hyper_units 12*embedding"]
    bias_z: Float[Tensor, "12*embedding"]
    bias: Float[Tensor, "gates 1 units"]
    affine: Affine | None
    hyper_affine: Affine | None


class HyperLSTMCell(Cell):
    """One layer. The state is (h, c, hyper h, hyper c).

    Embeddings are ordered by what they make (weights of h, of x, bias), then by gate i, g, f, o. At the start
    every row is scaled by 0.1 and the generated bias is 0.
    """

    def __init__(self, input_size: int, hidden_size: int, options: CellOptions, hyper: HyperOptions) -> None:
        super().__init__()
        self.options, self.hyper_options = options, hyper
        self.sizes = (hidden_size, hidden_size, hyper.units, hyper.units)
        small = CellOptions(hyper.layer_norm, options.forget_bias, hyper.recurrent_keep, options.initial)
        self.hyper = LSTMCell(input_size + hidden_size, hyper.units, small)  # reads [x, h]
        self.weight_x = nn.Parameter(torch.empty(input_size, GATES * hidden_size))
        self.weight_h = nn.Parameter(torch.empty(hidden_size, GATES * hidden_size))
        self.bias = nn.Parameter(torch.zeros(GATES * hidden_size))
        self.norms = Norms(hidden_size) if options.layer_norm else None
        start_weights(self.weight_x, self.weight_h, options.initial)
        self.weight_z = nn.Parameter(torch.zeros(hyper.units, GENERATED * GATES, hyper.embedding))
        self.bias_z = nn.Parameter(torch.ones(SCALED * GATES, hyper.embedding))
        self.weight_d = nn.Parameter(torch.zeros(GENERATED * GATES, hyper.embedding, hidden_size))
        nn.init.normal_(self.weight_z.data[:, SCALED * GATES :], std=BIAS_DEVIATION)
        start_scales(self.weight_d.data[: SCALED * GATES], options.initial)

    def scan(
        self,
        x: Tensor,
        state: State,
        scale: Tensor | None = None,
        present: Present = None,
        fused: bool = False,
    ) -> tuple[Tensor, State]:
        step, hyper_bias = self._step()
        hyper_weight_x = self.hyper.weight_x[: self.weight_x.shape[0]]
        inputs = project(x, self.weight_x, scale)
        hyper_inputs = project(x, hyper_weight_x, scale) + hyper_bias
        keep = self.options.recurrent_keep if self.training else 1.0
        masks = dropout_masks(len(x), state[1], keep)
        hyper_masks = self.hyper.masks(len(x), state[3])
        rows = each(present, len(x))
        if fused and fusable(inputs):
            return self._fused(self._plan(masks, hyper_masks, rows), step, (inputs, hyper_inputs), state)
        outputs = []
        unbound = by_gate(inputs).unbind(0), hyper_inputs.unbind(0)
        for here, now, hyper_now, mask, hyper_mask in zip(rows, *unbound, masks, hyper_masks, strict=True):
            state = hold(here, self._advance(step, state, now, hyper_now, mask, hyper_mask), state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def _plan(self, masks: Times, hyper_masks: Times, present: Times) -> Plan:
        previous = self.hyper_options.embeddings_from == "previous"
        normed, hyper_normed = self.norms is not None, self.hyper.norms is not None
        return Plan(torch.is_grad_enabled(), masks, hyper_masks, present, previous, normed, hyper_normed)

    def _fused(
        self, plan: Plan, step: Step, inputs: tuple[Tensor, Tensor], state: State
    ) -> tuple[Tensor, State]:
        weights = Weights(
            step.weight_h,
            self.hyper.weight_h,
            step.weight_z,
            step.bias_z,
            self.weight_d,
            step.bias.flatten(),
        )
        norms = *norm_of(self.norms, step.affine), *norm_of(self.hyper.norms, step.hyper_affine)
        outputs, *last = HyperLSTMScan.apply(plan, *inputs, *state, *weights, *norms)  # type: ignore[misc]
        return outputs, tuple(last)

    def _step(self) -> tuple[Step, Tensor]:
        bias, affine = gate_constants(self.bias, self.norms, self.options.forget_bias)
        small = self.hyper
        hyper_bias, hyper_affine = gate_constants(small.bias, small.norms, self.options.forget_bias)
        step = Step(
            weight_h=torch.cat([self.weight_h, small.weight_x[self.weight_x.shape[0] :]], dim=1),
            weight_z=self.weight_z.flatten(1),
            bias_z=torch.cat([self.bias_z, torch.zeros_like(self.bias_z[:GATES])]).flatten(),
            bias=bias.view(GATES, 1, -1),
            affine=affine,
            hyper_affine=hyper_affine,
        )
        return step, hyper_bias

    def _advance(
        self,
        step: Step,
        state: State,
        inputs: Float[Tensor, "gates batch units"],
        hyper_inputs: Float[Tensor, "batch gates*hyper_units"],
        mask: Tensor | None,
        hyper_mask: Tensor | None,
    ) -> State:
        hidden, cell, hyper_hidden, hyper_cell = state
        from_hidden = hidden @ step.weight_h
        recurrent, to_hyper = from_hidden.split(
            [inputs.shape[0] * inputs.shape[2], hyper_inputs.shape[1]], dim=1
        )
        total = torch.addmm(hyper_inputs + to_hyper, hyper_hidden, self.hyper.weight_h)
        following, hyper_cell = self.hyper.advance(total, hyper_cell, step.hyper_affine, hyper_mask)
        source = following if self.hyper_options.embeddings_from == "current" else hyper_hidden
        of_hidden, of_input, of_bias = self._generate(step, source)
        gates = torch.addcmul(of_bias + step.bias, of_hidden, by_gate(recurrent))
        gates = normalise(torch.addcmul(gates, of_input, inputs), step.affine)
        hidden, cell = advance(gates, cell, self.norms, mask)
        return hidden, cell, following, hyper_cell

    def _generate(self, step: Step, source: Float[Tensor, "batch hyper_units"]) -> tuple[Tensor, ...]:
        """d_h, d_x and the generated bias, each [gates batch units] (eq. 11 and 12)."""
        embeddings = torch.addmm(step.bias_z, source, step.weight_z)
        embeddings = embeddings.unflatten(1, (GENERATED * GATES, -1)).transpose(0, 1)
        return torch.bmm(embeddings, self.weight_d).split(GATES)


def start_scales(weight_d: Float[Tensor, "scaled embedding units"], initial: str) -> None:
    """What makes every d 0.1, from embeddings that are 1: equal parts, or with "spread" random ones.

    From equal parts the entries of an embedding have equal gradients for ever and so stay one number,
    whatever its size.
    """
    parts = torch.rand_like(weight_d) if initial == "spread" else torch.ones_like(weight_d)
    weight_d.copy_(SCALE * parts / parts.sum(dim=1, keepdim=True))


class HyperLSTM(Stack):
    """Drop-in for `torch.nn.LSTM`: the state is (h, c, hyper h, hyper c)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        options: CellOptions,
        hyper: HyperOptions,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        inputs = [input_size] + [hidden_size] * (num_layers - 1)
        cells = [HyperLSTMCell(size, hidden_size, options, hyper) for size in inputs]
        super().__init__(cells, batch_first, dropout)
