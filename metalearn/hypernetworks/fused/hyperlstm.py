"""The HyperLSTM over a whole sequence, with its backward pass by hand.

The products of weights with all times, for their gradients, are put off to one product a weight; scalings
are made anew on the way back instead of kept.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypernetworks.fused.blocks import Blocks, Norm
from metalearn.hypernetworks.fused.kernel import blocks_for
from metalearn.hypernetworks.fused.product import Product
from metalearn.hypernetworks.fused.sequence import Carried, Kept, Times, across, memory, room, used_up


class Plan(NamedTuple):
    """What is no tensor, or has no gradient."""

    keep: bool  # there will be a way back
    masks: Times  # of recurrent dropout
    hyper_masks: Times
    present: Times  # presence of rows
    previous: bool  # the embeddings come from the hyper cell's output at the step before
    normed: bool  # layer normalisation of the main cell
    hyper_normed: bool

    def norms(self, tensors: tuple[Tensor, ...]) -> tuple[Norm | None, Norm | None]:
        """Of main and hyper cell, from the tensors of both in this order."""
        count = len(Norm._fields)
        main = Norm(*tensors[:count]) if self.normed else None
        return main, Norm(*tensors[-count:]) if self.hyper_normed else None


class Weights(NamedTuple):
    """As `Step` of hyperlstm.py has them."""

    weight: Float[Tensor, "units gates*units+gates*hyper_units"]  # from h to main and hyper cell
    hyper: Float[Tensor, "hyper_units gates*hyper_units"]
    weight_z: Float[Tensor, "hyper_units 12*embedding"]
    bias_z: Float[Tensor, "12*embedding"]
    weight_d: Float[Tensor, "12 embedding units"]
    bias: Float[Tensor, "gates*units"]


class Scratch(NamedTuple):
    """What a pass over a sequence keeps for the way back, besides what its cells keep."""

    product: Float[Tensor, "time batch gates*units+gates*hyper_units"]
    z: Float[Tensor, "time batch 12*embedding"]

    def embeddings(self, time: int, parts: int) -> Float[Tensor, "12 batch embedding"]:
        return self.z[time].unflatten(1, (parts, -1)).transpose(0, 1)


class HyperLSTMScan(torch.autograd.Function):
    """Outputs [time batch units] and the last h, c, hyper h and hyper c.

    Arguments: a plan; inputs after their products with the main cell's and the hyper cell's weights, the
    latter's bias added [time batch gates*units]; the four tensors of the state; the six of `Weights`; the
    tensors of a `Norm` of each cell that has one. Differentiable once; raises UserError for more.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, inputs: Tensor, hyper_inputs: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        state, weights, norms = tensors[:4], Weights(*tensors[4:10]), tensors[10:]
        norm, hyper_norm = plan.norms(norms)
        inputs, times = inputs.contiguous(), len(inputs)
        main = memory(times, state[0], state[1], norm, plan.keep)
        small = memory(times, state[2], state[3], hyper_norm, plan.keep)
        scratch = Scratch(
            room(state[0], times, weights.weight.shape[1], plan.keep),
            room(state[0], times, weights.weight_z.shape[1], plan.keep),
        )
        blocks, made = blocks_for(inputs), _made(weights, inputs)
        onwards = Product(weights.weight, len(state[0]), times)
        steps, small_steps = main.steps(plan.masks), small.steps(plan.hyper_masks)
        for time, (step, small_step) in enumerate(zip(steps, small_steps, strict=True)):
            product, recurrent, to_hyper = _split(scratch.product[time], inputs)
            onwards.into(main.hidden[time], product)
            before = small.hidden[time]
            torch.addmm(hyper_inputs[time], before, weights.hyper, out=small_step.gates).add_(to_hyper)
            blocks.cell_forward(small_step, hyper_norm)
            source = before if plan.previous else small_step.hidden
            torch.addmm(weights.bias_z, source, weights.weight_z, out=scratch.z[time])
            torch.bmm(scratch.embeddings(time, len(made)), weights.weight_d, out=made)
            blocks.mix_forward(step.gates, recurrent, inputs[time], made, weights.bias)
            blocks.cell_forward(step, norm)
            main.hold(time, plan.present[time])
            small.hold(time, plan.present[time])
        ctx.plan = plan
        ctx.save_for_backward(inputs, *weights, *main, *small, *scratch, *norms)
        lasts = main.hidden, main.cell, small.hidden, small.cell
        return main.hidden[1:].clone(), *(states[-1].clone() for states in lasts)

    @staticmethod
    def backward(ctx: Any, grads: Tensor, *lasts: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        plan, (inputs, *rest) = ctx.plan, ctx.saved_tensors
        weights, main, small = Weights(*rest[:6]), Kept(*rest[6:10]), Kept(*rest[10:14])
        scratch, norms = Scratch(*rest[14:16]), plan.norms(tuple(rest[16:]))
        used_up(main.gates, *scratch)
        way = _Back(plan, weights, main, small, scratch, norms, blocks_for(inputs))
        return None, *way.run(inputs, grads, lasts)


class _Back:
    """The way back; gradients by products, inputs and embeddings are left in their places."""

    def __init__(
        self,
        plan: Plan,
        weights: Weights,
        main: Kept,
        small: Kept,
        scratch: Scratch,
        norms: tuple[Norm | None, Norm | None],
        blocks: Blocks,
    ) -> None:
        self.plan, self.weights, self.scratch, self.blocks = plan, weights, scratch, blocks
        self.main, self.small, self.norms = main, small, norms
        self.by_weight_d, self.by_bias = torch.zeros_like(weights.weight_d), torch.zeros_like(weights.bias)
        self.made = _made(weights, main.hidden)
        self.back = Product(weights.weight.t(), self.made.shape[1], len(main.gates))
        self.steps, self.small_steps = main.steps(plan.masks), small.steps(plan.hyper_masks)

    def run(self, inputs: Tensor, grads: Tensor, lasts: tuple[Tensor, ...]) -> list[Tensor]:
        """Gradients by all tensor arguments, in their order."""
        main = Carried(lasts[0], lasts[1], self.norms[0])
        small = Carried(lasts[2], lasts[3], self.norms[1])
        for time in reversed(range(len(inputs))):
            main.hidden += grads[time]
            main.enter(self.plan.present[time])
            small.enter(self.plan.present[time])
            self._step(time, inputs[time], main, small)
        to_hyper = _split(self.scratch.product, inputs)[2]
        hidden, hyper_hidden = self.main.hidden[:-1], self.small.hidden
        source = hyper_hidden[:-1] if self.plan.previous else hyper_hidden[1:]
        by_weights = Weights(
            across(hidden, self.scratch.product),
            across(hyper_hidden[:-1], to_hyper),
            across(source, self.scratch.z),
            self.scratch.z.sum(dim=(0, 1)),
            self.by_weight_d,
            self.by_bias,
        )
        by_state = [main.hidden, main.cell, small.hidden, small.cell]
        by_norms = main.by_norms(self.norms[0]) + small.by_norms(self.norms[1])
        return [self.main.gates, to_hyper, *by_state, *by_weights, *by_norms]

    def _step(self, time: int, inputs: Tensor, main: Carried, small: Carried) -> None:
        weights, gates = self.weights, self.steps[time].gates
        product, recurrent, to_hyper = _split(self.scratch.product[time], inputs)
        self.blocks.cell_backward(self.steps[time], self.norms[0], main.grads(gates))
        embeddings = self.scratch.embeddings(time, len(self.made))
        torch.bmm(embeddings, weights.weight_d, out=self.made)
        self.blocks.mix_backward(gates, recurrent, inputs, self.made, self.by_bias)
        self.by_weight_d.baddbmm_(embeddings.transpose(1, 2), self.made)
        embeddings.copy_(torch.bmm(self.made, weights.weight_d.transpose(1, 2)))
        by_source = self.scratch.z[time] @ weights.weight_z.t()
        if not self.plan.previous:
            small.hidden += by_source
        self.blocks.cell_backward(self.small_steps[time], self.norms[1], small.grads(to_hyper))
        before = to_hyper @ weights.hyper.t()
        small.leave(before + by_source if self.plan.previous else before)
        main.leave(self.back(product))


def _split(product: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All of it, the main cell's part and the hyper cell's."""
    columns = inputs.shape[-1]
    return product, product[..., :columns], product[..., columns:]


def _made(weights: Weights, like: Tensor) -> Float[Tensor, "12 batch units"]:
    """Room for d_h, d_x and the generated bias of one step."""
    parts, _, units = weights.weight_d.shape
    return like.new_empty(parts, like.shape[1], units)
