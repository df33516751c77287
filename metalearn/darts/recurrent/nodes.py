"""What happens at one node of the recurrent supernet, forward and backward, in place on given memory."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

EPSILON = 1e-5  # inside the normalisation's square root, as torch's default; mixing.c has it too


class Nodes(ABC):
    """The four passes; one time step's tensors, all contiguous.

    `states` and `masked` are [node batch units], `grads` the loss's gradient by the states, `product`
    [edge batch two*units] gates and candidates, for node 0 [batch two*units], `shares` [edge operation] a
    node's own edges, `statistics` [two units] mean and biased variance.
    """

    @abstractmethod
    def first_forward(
        self,
        product: Tensor,
        hidden: Tensor,
        states: Tensor,
        masked: Tensor,
        mask: Tensor,
        statistics: Tensor,
    ) -> None:
        """Node 0: writes `states[0]`, `masked[0]`, `statistics`; leaves in `product` what backward needs."""

    @abstractmethod
    def first_backward(
        self,
        product: Tensor,
        hidden: Tensor,
        states: Tensor,
        statistics: Tensor,
        grads: Tensor,
        grad_hidden: Tensor,
    ) -> None:
        """From `grads[0]`, used up: the gradient by `product`, in its place, and by `hidden` alone."""

    @abstractmethod
    def node_forward(
        self,
        product: Tensor,
        shares: Tensor,
        states: Tensor,
        masked: Tensor,
        mask: Tensor,
        statistics: Tensor,
    ) -> None:
        """The node after its edges' sources, likewise."""

    @abstractmethod
    def node_backward(
        self,
        product: Tensor,
        shares: Tensor,
        states: Tensor,
        statistics: Tensor,
        grads: Tensor,
        grad_shares: Tensor,
    ) -> None:
        """From its gradient, which is used up: the gradient by `product`, in its place, what goes straight to
        its sources, added to `grads`, and that by `shares`, added to `grad_shares` (float64)."""


class EagerNodes(Nodes):
    """By torch's own operations: for any device, and where there is no compiler."""

    def first_forward(
        self,
        product: Tensor,
        hidden: Tensor,
        states: Tensor,
        masked: Tensor,
        mask: Tensor,
        statistics: Tensor,
    ) -> None:
        gate, value = product.chunk(2, dim=-1)
        gate.sigmoid_()
        value.tanh_()
        _normalise(torch.lerp(hidden, value, gate), states[0], masked[0], mask, statistics)

    def first_backward(
        self,
        product: Tensor,
        hidden: Tensor,
        states: Tensor,
        statistics: Tensor,
        grads: Tensor,
        grad_hidden: Tensor,
    ) -> None:
        gate, value = product.chunk(2, dim=-1)
        grad = _normalise_back(grads[0], states[0], statistics[1])
        opened = grad * gate
        torch.sub(grad, opened, out=grad_hidden)
        slope = (value - hidden).mul_(opened).mul_(1 - gate)
        value.copy_(opened * (1 - value * value))
        gate.copy_(slope)

    def node_forward(
        self,
        product: Tensor,
        shares: Tensor,
        states: Tensor,
        masked: Tensor,
        mask: Tensor,
        statistics: Tensor,
    ) -> None:
        edges = len(shares)
        gate, candidate = product.chunk(2, dim=-1)
        gate.sigmoid_()
        _, tanh, relu, sigmoid, identity = _columns(shares)
        kept = states[:edges] * _kept(shares)
        mixed = candidate * identity
        mixed.addcmul_(candidate.tanh(), tanh).addcmul_(candidate.relu(), relu)
        mixed.addcmul_(candidate.sigmoid(), sigmoid)
        _normalise(torch.lerp(kept, mixed, gate).sum(dim=0), states[edges], masked[edges], mask, statistics)

    def node_backward(
        self,
        product: Tensor,
        shares: Tensor,
        states: Tensor,
        statistics: Tensor,
        grads: Tensor,
        grad_shares: Tensor,
    ) -> None:
        edges = len(shares)
        gate, candidate = product.chunk(2, dim=-1)
        _, tanh, relu, sigmoid, identity = _columns(shares)
        grad = _normalise_back(grads[edges], states[edges], statistics[1])
        opened, sources = grad * gate, states[:edges]
        closed, kept = grad - opened, _kept(shares)
        values = candidate.tanh(), candidate.relu(), candidate.sigmoid(), candidate
        straight = (closed * sources).sum(dim=(1, 2))
        for place, value in enumerate(values, start=1):
            grad_shares[:, place] += straight + (opened * value).sum(dim=(1, 2))
        grads[:edges].addcmul_(closed, kept)
        mixed = candidate * identity
        for value, share in zip(values, (tanh, relu, sigmoid), strict=False):
            mixed.addcmul_(value, share)
        slope = (1 - values[0].square()).mul_(tanh).addcmul_((candidate > 0).to(candidate), relu)
        slope.addcmul_(values[2] * (1 - values[2]), sigmoid).add_(identity).mul_(opened)
        mixed.sub_(sources * kept).mul_(opened).mul_(1 - gate)
        gate.copy_(mixed)
        candidate.copy_(slope)


def _columns(shares: Tensor) -> tuple[Tensor, ...]:
    return shares[:, :, None, None].unbind(1)


def _kept(shares: Tensor) -> Tensor:
    """The part of an edge's source that stays where its gate is closed: all but the share of none."""
    return shares[:, 1:].sum(dim=1)[:, None, None]


def _normalise(raw: Tensor, state: Tensor, masked: Tensor, mask: Tensor, statistics: Tensor) -> None:
    variance, mean = torch.var_mean(raw, dim=0, correction=0)
    statistics[0].copy_(mean)
    statistics[1].copy_(variance)
    torch.mul(raw - mean, (variance + EPSILON).rsqrt(), out=state)
    torch.mul(state, mask, out=masked)


def _normalise_back(grad: Tensor, state: Tensor, variance: Tensor) -> Tensor:
    centred = grad - grad.mean(dim=0)
    return centred.addcmul_(state, (grad * state).mean(dim=0), value=-1).mul_((variance + EPSILON).rsqrt())
