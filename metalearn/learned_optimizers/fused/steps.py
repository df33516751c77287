"""Steps that were taken already, in one node of the graph: the way back runs them again block by block."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.fused.kernel import Given, Stack, Wanted, backward
from metalearn.learned_optimizers.fused.step import refuse_second, state_names, weights_of
from metalearn.problem import Inner
from metalearn.tree import Tree


def fused_steps(
    stack: Stack, scale: float, meta: Tree, start: Inner, grads: Float[Tensor, "steps ..."], after: Inner
) -> Inner:
    """`after` as a function of `meta` and `start`, differentiable once.

    theta moves by `scale` times the stack's output for each of `grads`; `after` has theta of every step in
    front, and the state after the last one, [..., hidden].
    """
    names, weights = state_names(stack), weights_of(stack, meta)
    values = after.params["theta"], *(after.slots[name].detach() for name in names)
    starts = (start.slots[name] for name in names)
    thetas, *ends = _Steps.apply(stack, scale, values, grads, start.params["theta"], *starts, *weights)  # type: ignore[misc]
    return Inner({"theta": thetas}, dict(zip(names, ends, strict=True)))


class _Steps(torch.autograd.Function):
    """(stack, scale, values, gradients, theta, states, weights) -> values: all thetas, the last states."""

    @staticmethod
    def forward(
        ctx: Any, stack: Stack, scale: float, values: tuple[Tensor, ...], grads: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.stack, ctx.scale = stack, scale
        ctx.save_for_backward(grads, *tensors[1:])
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    def backward(ctx: Any, *found: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second()
        seen, *tensors = ctx.saved_tensors
        stack, parts, needed = ctx.stack, 2 * ctx.stack.layers, ctx.needs_input_grad[4:]
        states = [state.flatten(0, -2) for state in tensors[:parts]]
        ends = [None if grad is None else grad.flatten(0, -2) for grad in found[1:]]
        by_theta, by_output = None, None
        if found[0] is not None:  # a step's output moves every later theta
            later = found[0].flip(0).cumsum(0).flip(0)
            by_theta, by_output = later[0], ctx.scale * later.flatten(1)
        given = Given(seen.flatten(1), states, tensors[parts:])
        wanted = Wanted(seen=False, states=any(needed[1 : parts + 1]))
        _, by_states, by_weights = backward(stack, given, by_output, ends, wanted)
        by_starts = [grad.view_as(state) for grad, state in zip(by_states, tensors, strict=False)]
        return None, None, None, None, by_theta, *(by_starts or [None] * parts), *by_weights
