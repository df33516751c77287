"""The supernet's cell over a whole sequence, with its backward pass by hand: for a machine that may fuse.

Products of all weights with all times are put off to one product a weight, where they are wanted at all; the
mixture of activations is gated once an edge instead of once an activation; states live in one buffer.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.darts.recurrent.kernel import CompiledNodes, library
from metalearn.darts.recurrent.nodes import EagerNodes, Nodes
from metalearn.registry import UserError


class Sequence(NamedTuple):
    """What a pass over a sequence keeps for the way back."""

    hidden: Float[Tensor, "time_and_one batch units"]  # the start, then the outputs
    states: Float[Tensor, "time node batch units"]
    masked: Float[Tensor, "time node batch units"]
    first: Float[Tensor, "time batch two*units"]
    products: list[Tensor]  # of each node, [time edge batch two*units]
    statistics: Float[Tensor, "time node two units"]


class Scan(torch.autograd.Function):
    """Outputs [time batch units] and the normalisations' statistics [time node two units] (no gradient).

    Arguments: the input's part of node 0's product [time batch two*units], the start and the mask of hidden
    states [batch units], shares [edge operation], the hidden part of node 0's weight [units two*units], then
    the weights of the nodes. Differentiable once; raises UserError for more.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, start: Tensor, mask: Tensor, shares: Tensor, first: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept = _memory(inputs, start, len(weights))
        nodes, rows = nodes_for(inputs), _rows(shares, len(weights))
        shape = start.shape
        for time in range(len(inputs)):
            hidden, states, masked = kept.hidden[time], kept.states[time], kept.masked[time]
            torch.addmm(inputs[time], hidden * mask, first, out=kept.first[time])
            nodes.first_forward(kept.first[time], hidden, states, masked, mask, kept.statistics[time, 0])
            for node, (weight, own) in enumerate(zip(weights, rows, strict=True), start=1):
                product = kept.products[node - 1][time]
                torch.mm(masked[:node].view(-1, shape[1]), weight, out=product.view(-1, 2 * shape[1]))
                nodes.node_forward(product, own, states, masked, mask, kept.statistics[time, node])
            torch.mean(states[1:], dim=0, out=kept.hidden[time + 1])
        ctx.save_for_backward(mask, shares, first, *weights, *kept[:4], kept.statistics, *kept.products)
        ctx.mark_non_differentiable(kept.statistics)
        return kept.hidden[1:].clone(), kept.statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _refuse_second_derivative()
        mask, shares, first, *rest = ctx.saved_tensors
        count = (len(rest) - 5) // 2
        weights, (hidden, states, masked, by_input, statistics) = rest[:count], rest[count : count + 5]
        kept = Sequence(hidden, states, masked, by_input, rest[count + 5 :], statistics)
        for product in (kept.first, *kept.products):  # their memory is written over: a second pass is refused
            torch.autograd.graph.increment_version(product)
        grad_hidden, grad_shares = _backwards(kept, grads[0], mask, shares, first, weights)
        wanted = ctx.needs_input_grad
        by_first = None
        if wanted[4]:
            by_first = (kept.hidden[:-1] * mask).flatten(0, 1).t() @ kept.first.flatten(0, 1)
        by_weights = [
            kept.masked[:, :node].flatten(0, 2).t() @ kept.products[node - 1].flatten(0, 2) if asked else None
            for node, asked in enumerate(wanted[5:], start=1)
        ]
        return kept.first, grad_hidden, None, grad_shares.to(shares), by_first, *by_weights


def _backwards(
    kept: Sequence, grad: Tensor, mask: Tensor, shares: Tensor, first: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients by the start and by the shares; those by products are left in the products' places."""
    nodes, rows = nodes_for(grad), _rows(shares, len(weights))
    totals = torch.zeros(shares.shape, dtype=torch.float64, device=shares.device)
    grad_rows = _rows(totals, len(weights))
    states_grad, units = torch.empty_like(kept.states[0]), mask.shape[1]
    carried, straight = torch.zeros_like(mask), torch.empty_like(mask)
    through = torch.empty_like(kept.states[0])
    for time in reversed(range(len(grad))):
        states, statistics = kept.states[time], kept.statistics[time]
        states_grad[0].zero_()
        states_grad[1:] = (grad[time] + carried) / len(weights)
        for node in range(len(weights), 0, -1):
            product = kept.products[node - 1][time]
            nodes.node_backward(
                product, rows[node - 1], states, statistics[node], states_grad, grad_rows[node - 1]
            )
            torch.mm(product.view(-1, 2 * units), weights[node - 1].t(), out=through[:node].view(-1, units))
            states_grad[:node].addcmul_(through[:node], mask)
        product = kept.first[time]
        nodes.first_backward(product, kept.hidden[time], states, statistics[0], states_grad, straight)
        torch.addcmul(straight, product @ first.t(), mask, out=carried)
    return carried, totals


def nodes_for(tensor: Tensor) -> Nodes:
    """The kernel where it can be built, or torch's own operations."""
    built = library(tensor.dtype) if tensor.device.type == "cpu" else None
    return EagerNodes() if built is None else CompiledNodes(built)


def _memory(inputs: Tensor, start: Tensor, nodes: int) -> Sequence:
    time, (batch, units) = len(inputs), start.shape
    hidden = inputs.new_empty(time + 1, batch, units)
    hidden[0] = start
    return Sequence(
        hidden,
        inputs.new_empty(time, nodes + 1, batch, units),
        inputs.new_empty(time, nodes + 1, batch, units),
        torch.empty_like(inputs),
        [inputs.new_empty(time, node, batch, 2 * units) for node in range(1, nodes + 1)],
        inputs.new_empty(time, nodes + 1, 2, units),
    )


def _rows(table: Tensor, nodes: int) -> list[Tensor]:
    """The rows of each node's own edges."""
    return list(table.split(list(range(1, nodes + 1))))


def _refuse_second_derivative() -> None:
    """torch's own mark would leave the second-order term out in silence."""
    if torch.is_grad_enabled():
        raise UserError(
            "darts_recurrent_supernet in its fused form has no second derivative; set machine.fused=false, "
            "or choose hypergradient=finite_difference or first_order"
        )
