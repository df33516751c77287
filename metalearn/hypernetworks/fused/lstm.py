"""The LSTM over a whole sequence, with its backward pass by hand."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metalearn.hypernetworks.fused.blocks import Norm
from metalearn.hypernetworks.fused.kernel import blocks_for
from metalearn.hypernetworks.fused.sequence import Carried, Kept, across, memory, used_up

Times = Sequence[Tensor | None]  # something of each time step, or nothing


class LSTMScan(torch.autograd.Function):
    """Outputs [time batch units] and the last h and c.

    Arguments: masks of recurrent dropout and presence of rows at each time; inputs after their product with
    their weight, bias added [time batch gates*units]; h, c; the recurrent weight; the tensors of a `Norm` with
    layer normalisation. Differentiable once; raises UserError for more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        masks: Times,
        present: Times,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight: Tensor,
        *norms: Tensor,
    ) -> tuple[Tensor, ...]:
        norm = Norm(*norms) if norms else None
        blocks, kept = blocks_for(inputs), memory(len(inputs), hidden, cell, norm)
        for time, (mask, here) in enumerate(zip(masks, present, strict=True)):
            torch.addmm(inputs[time], kept.hidden[time], weight, out=kept.gates[time])
            blocks.cell_forward(kept.step(time, mask), norm)
            kept.hold(time, here)
        ctx.masks, ctx.present = masks, present
        ctx.save_for_backward(weight, *kept, *norms)
        return kept.hidden[1:].clone(), kept.hidden[-1].clone(), kept.cell[-1].clone()

    @staticmethod
    def backward(ctx: Any, grads: Tensor, *lasts: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, *rest = ctx.saved_tensors
        kept, norms = Kept(*rest[:4]), rest[4:]
        used_up(kept.gates)
        norm = Norm(*norms) if norms else None
        blocks, carried = blocks_for(grads), Carried(*lasts, norm)
        for time in reversed(range(len(grads))):
            carried.hidden += grads[time]
            carried.enter(ctx.present[time])
            step = kept.step(time, ctx.masks[time])
            blocks.cell_backward(step, norm, carried.grads(step.gates))
            carried.leave(step.gates @ weight.t())
        by_weight = across(kept.hidden[:-1], kept.gates) if ctx.needs_input_grad[5] else None
        by_norms = carried.by_norms(norm)
        return None, None, kept.gates, carried.hidden, carried.cell, by_weight, *by_norms
