"""An unroll that keeps about sqrt(K) states of its K inner steps and runs the parts between them again."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypergradient.base import Segment, check_segment, pull_back
from metalearn.hypergradient.inner_run import run
from metalearn.problem import Inner, Problem, visit
from metalearn.registry import UserError
from metalearn.tree import Tree, detach, require_grad


def unroll_recomputed(
    problem: Problem, meta: Tree, inner: Inner, segment: Segment
) -> tuple[Float[Tensor, ""], Inner]:
    """As `unroll`, to rounding, with memory for about sqrt(K) states and sqrt(K) steps instead of K steps.

    The last part is kept in the graph: it is the first that a backward pass needs. What comes back has no
    second derivative: asking for it raises UserError.
    """
    check_segment(segment)
    parts = segment.split(math.isqrt(max(len(segment.inner) - 1, 0)) + 1) or [segment]
    losses = []
    for part in parts[:-1]:
        scores, inner = _without_graph(problem, meta, inner, part)
        losses += scores
    scores, inner = run(problem, meta, inner, parts[-1])
    return torch.stack(losses + scores).sum(), inner


class _Keys(NamedTuple):
    """Names of tensors that come as one list, tree by tree."""

    meta: list[str]
    params: list[str]
    slots: list[str]

    def trees(self, tensors: tuple[Tensor, ...] | list[Tensor]) -> tuple[Tree, Inner]:
        """Meta-parameters and the place of an inner run."""
        each = iter(tensors)
        meta, params, slots = [{key: next(each) for key in keys} for keys in self]
        return meta, Inner(params, slots)


class _Part:
    """Some inner steps between two kept states: what both passes of `_Recomputed` are told."""

    def __init__(self, problem: Problem, segment: Segment, start: _Keys) -> None:
        self.problem, self.segment, self.start = problem, segment, start
        self.end = start  # names after the last step, known when it is done


def _without_graph(
    problem: Problem, meta: Tree, inner: Inner, segment: Segment
) -> tuple[list[Tensor], Inner]:
    """As `run`; the steps are forgotten, and taken again when a gradient comes back."""
    part = _Part(problem, segment, _Keys(list(meta), list(inner.params), list(inner.slots)))
    tensors = [*meta.values(), *inner.params.values(), *inner.slots.values()]
    found = list(_Recomputed.apply(part, *tensors))  # type: ignore[arg-type]
    scores, found = found[: len(segment.outer)], found[len(segment.outer) :]
    return scores, part.end.trees(found)[1]


class _Recomputed(torch.autograd.Function):
    """(part, start) -> (outer losses, end); saves the start only."""

    @staticmethod
    def forward(ctx: Any, part: _Part, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.part, ctx.autocast = part, _autocast_state(tensors)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        marked = [
            _marked(leaf, needed) for leaf, needed in zip(tensors, ctx.needs_input_grad[1:], strict=True)
        ]
        with torch.enable_grad():
            losses, end = _values(part.problem, *part.start.trees(marked), part.segment)
        part.end = _Keys([], list(end.params), list(end.slots))
        ends = [*end.params.values(), *end.slots.values()]
        values = [leaf.detach() for leaf in ends]
        constant = [value for value, leaf in zip(values, ends, strict=True) if not leaf.requires_grad]
        ctx.mark_non_differentiable(*constant)
        return *losses, *values

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise UserError(
                "unrolled: with recompute=true the hypergradient has no derivative of its own; set "
                "hypergradient.recompute=false to differentiate it"
            )
        part: _Part = ctx.part
        needed = ctx.needs_input_grad[1:]
        leaves = [_marked(leaf, wanted) for leaf, wanted in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            losses, end = run(part.problem, *part.start.trees(leaves), part.segment)
        outputs = [*losses, *end.params.values(), *end.slots.values()]
        pairs = [(one, by) for one, by in zip(outputs, cotangents, strict=True) if by is not None]
        targets = {str(place): leaf for place, leaf in enumerate(leaves) if needed[place]}
        grads = pull_back([one for one, _ in pairs], [by for _, by in pairs], targets)[0]
        return None, *(grads.get(str(place)) for place in range(len(leaves)))


def _values(problem: Problem, meta: Tree, inner: Inner, segment: Segment) -> tuple[list[Tensor], Inner]:
    """What `run` computes, step by step without a graph; the end requires grad where `run`'s would."""
    fixed, losses = detach(meta), []
    for step, batch in enumerate(segment.inner):
        score, grads = visit(problem, fixed, detach(inner.params), batch, segment.outer.get(step))
        if score is not None:
            losses.append(score)
        after = problem.update(meta, inner, require_grad(grads) if problem.second_derivatives else grads)
        inner = Inner(
            *({key: _marked(leaf, leaf.requires_grad) for key, leaf in tree.items()} for tree in after)
        )
    return losses, inner


def _marked(leaf: Tensor, wanted: bool) -> Tensor:
    """The same value as a fresh leaf that autograd follows if `wanted`."""
    return leaf.detach().requires_grad_(wanted)


def _autocast_state(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """The arguments of `torch.autocast` for what holds now: a backward pass may run outside of it."""
    device = tensors[0].device.type
    return {
        "device_type": device,
        "enabled": torch.is_autocast_enabled(device),
        "dtype": torch.get_autocast_dtype(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }
