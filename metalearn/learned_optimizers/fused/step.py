"""One step of the stack in the graph: nothing is kept but where it started."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.fused.kernel import Given, Stack, Wanted, backward, forward, library
from metalearn.registry import UserError
from metalearn.tree import Tree

LARGEST_P = 80  # exp(-p) is a normal float32


def fusable(stack: Stack, *tensors: Tensor) -> bool:
    """Whether the kernel may run."""
    return untransformed(*tensors) and stack.p < LARGEST_P and library(tensors[0].dtype) is not None


def untransformed(*tensors: Tensor) -> bool:
    """On the CPU and of one type, not under autocast, within no trace, vmap, functional or forward mode."""
    dtype = tensors[0].dtype
    alike = all(tensor.dtype == dtype and tensor.device.type == "cpu" for tensor in tensors)
    plain = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
    outside = torch.autograd.forward_ad._current_level < 0
    return alike and plain and outside and not torch._C._are_functorch_transforms_active()


def fused_step(
    stack: Stack, meta: Tree, seen: Float[Tensor, "coordinates *inputs"], state: Tree
) -> tuple[Float[Tensor, " coordinates"], Tree]:
    """One number for each coordinate, and the next state; differentiable once.

    `meta` and `state` as `CoordinateLstm` has them; a second derivative raises UserError.
    """
    names, weights = state_names(stack), weights_of(stack, meta)
    output, *after = _Step.apply(stack, seen, *(state[name] for name in names), *weights)  # type: ignore[misc]
    return output, dict(zip(names, after, strict=True))


def state_names(stack: Stack) -> list[str]:
    """Of the parts of a state, in the kernel's order."""
    return [f"{part}.{layer}" for layer in range(stack.layers) for part in ("hidden", "cell")]


def weights_of(stack: Stack, meta: Tree) -> list[Tensor]:
    """The weights in the kernel's order."""
    maps = [*(f"lstm.{layer}" for layer in range(stack.layers)), "linear"]
    return [meta[f"{name}.{part}"] for name in maps for part in ("weight", "bias")]


def refuse_second() -> None:
    """Raises UserError where a way back is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise UserError(
            "the fused form of the LSTM optimizer has no second derivative; set machine.fused=false"
        )


class _Step(torch.autograd.Function):
    """(stack, seen, states, weights) -> (output, states)."""

    @staticmethod
    def forward(ctx: Any, stack: Stack, seen: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.stack = stack
        ctx.save_for_backward(seen, *tensors)
        ctx.set_materialize_grads(False)
        output, after = forward(stack, _given(stack, seen, tensors))
        return output, *after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second()
        seen, *tensors = ctx.saved_tensors
        stack, needed = ctx.stack, ctx.needs_input_grad[1:]
        wanted = Wanted(needed[0], any(needed[1 : 2 * stack.layers + 1]))
        by_output = None if grads[0] is None else grads[0].unsqueeze(0)
        by_seen, by_states, by_weights = backward(
            stack, _given(stack, seen, tensors), by_output, grads[1:], wanted
        )
        by_states = by_states or [None] * (2 * stack.layers)
        return None, None if by_seen is None else by_seen.squeeze(0), *by_states, *by_weights


def _given(stack: Stack, seen: Tensor, tensors: Any) -> Given:
    parts = 2 * stack.layers
    return Given(seen.unsqueeze(0), tensors[:parts], tensors[parts:])
