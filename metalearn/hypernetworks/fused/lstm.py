"""The LSTM over a whole sequence, with its backward pass by hand."""

from typing import Any

import torch
from torch import Tensor

from metalearn.hypernetworks.fused.blocks import Norm
from metalearn.hypernetworks.fused.kernel import blocks_for
from metalearn.hypernetworks.fused.product import Product
from metalearn.hypernetworks.fused.sequence import Carried, Kept, Times, across, memory, used_up


class LSTMScan(torch.autograd.Function):
    """Outputs [time batch units] and the last h and c.

    Arguments: whether there will be a way back; masks of recurrent dropout and presence of rows at each time;
    inputs after their product with their weight, bias added [time batch gates*units]; h, c; the recurrent
    weight; the tensors of a `Norm` if there is layer normalisation. Differentiable once; raises UserError for
    more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keep: bool,
        masks: Times,
        present: Times,
        inputs: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight: Tensor,
        *norms: Tensor,
    ) -> tuple[Tensor, ...]:
        norm = Norm(*norms) if norms else None
        blocks, kept = blocks_for(inputs), memory(len(inputs), hidden, cell, norm, keep)
        before, product = kept.hidden[0], Product(weight, len(hidden), len(inputs))
        for time, (projected, step) in enumerate(zip(inputs.unbind(0), kept.steps(masks), strict=True)):
            product.into(before, step.gates)
            step.gates.add_(projected)
            blocks.cell_forward(step, norm)
            kept.hold(time, present[time])
            before = step.hidden
        ctx.masks, ctx.present = masks, present
        ctx.save_for_backward(weight, *kept, *norms)
        return kept.hidden[1:].clone(), kept.hidden[-1].clone(), kept.cell[-1].clone()

    @staticmethod
    def backward(ctx: Any, grads: Tensor, *lasts: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, *rest = ctx.saved_tensors
        kept, norms = Kept(*rest[:4]), rest[4:]
        used_up(kept.gates)
        norm = Norm(*norms) if norms else None
        blocks, carried = blocks_for(grads), Carried(lasts[0], lasts[1], norm)
        back = Product(weight.t(), len(lasts[0]), len(grads))
        times = zip(kept.steps(ctx.masks), grads.unbind(0), ctx.present, strict=True)
        for step, grad, here in reversed(list(times)):
            carried.hidden += grad
            carried.enter(here)
            blocks.cell_backward(step, norm, carried.grads(step.gates))
            carried.leave(back(step.gates))
        by_weight = across(kept.hidden[:-1], kept.gates) if ctx.needs_input_grad[6] else None
        by_norms = carried.by_norms(norm)
        return None, None, None, kept.gates, carried.hidden, carried.cell, by_weight, *by_norms
