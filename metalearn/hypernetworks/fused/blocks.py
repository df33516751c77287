"""What happens within the cells at one step, apart from products with weights; in place on given memory."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hypernetworks.recurrent import EPSILON, GATES

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
layer_norm_backward = torch.ops.aten.native_layer_norm_backward
STATISTICS = 6  # of a row: 1/deviation of the four gates, then mean and 1/deviation of the cell state


class Norm(NamedTuple):
    """Gains and shifts of a cell's layer normalisations, the forget bias among the shifts."""

    gain: Float[Tensor, "gates*units"]
    shift: Float[Tensor, "gates*units"]
    cell_gain: Float[Tensor, "units"]
    cell_shift: Float[Tensor, "units"]


class Step(NamedTuple):
    """One time step of a cell; each [batch units], the old state first; all contiguous."""

    gates: Float[Tensor, "batch gates*units"]
    before: Tensor
    after: Tensor
    hidden: Tensor
    mask: Tensor | None  # of recurrent dropout
    statistics: Float[Tensor, "batch statistics"] | None  # with layer normalisation


class Grads(NamedTuple):
    """Gradients of a cell at a step."""

    hidden: Float[Tensor, "batch units"]  # by the new output
    cell: Float[Tensor, "batch units"]  # by the new cell state; then, in its place, by the old one
    gates: Float[Tensor, "batch gates*units"]  # where that by the gates goes; may be a part of longer rows
    norms: Float[Tensor, "ten*units"] | None  # those by gains and shifts, in the order of Norm, add up here


class Blocks(ABC):
    """The four passes."""

    @abstractmethod
    def cell_forward(self, step: Step, norm: Norm | None) -> None:
        """Writes `after`, `hidden` and `statistics`; leaves in `gates` what backward needs."""

    @abstractmethod
    def cell_backward(self, step: Step, norm: Norm | None, grads: Grads) -> None:
        """Writes `grads.gates`, which may be `step.gates`, and `grads.cell`; adds to `grads.norms`."""

    @abstractmethod
    def mix_forward(
        self,
        gates: Float[Tensor, "batch gates*units"],
        recurrent: Float[Tensor, "batch gates*units"],
        inputs: Float[Tensor, "batch gates*units"],
        made: Float[Tensor, "twelve batch units"],
        bias: Float[Tensor, "gates*units"],
    ) -> None:
        """gates = d_h * recurrent + d_x * inputs + d_b + bias (eq. 12); `made` is d_h, d_x and d_b."""

    @abstractmethod
    def mix_backward(
        self,
        gates: Float[Tensor, "batch gates*units"],
        recurrent: Float[Tensor, "batch gates*units"],
        inputs: Float[Tensor, "batch gates*units"],
        made: Float[Tensor, "twelve batch units"],
        grad_bias: Float[Tensor, "gates*units"],
    ) -> None:
        """In place: `gates`, their gradient, becomes the inputs'; `recurrent` and `made` become their own
        gradients; that by the bias is added to `grad_bias`."""


class EagerBlocks(Blocks):
    """By torch's own operations: for any device, and where there is no compiler."""

    def cell_forward(self, step: Step, norm: Norm | None) -> None:
        gates = step.gates.unflatten(1, (GATES, -1))
        activated = gates
        if norm is not None:
            assert step.statistics is not None
            normalised, _, inverse = torch.native_layer_norm(gates, gates.shape[2:], None, None, EPSILON)
            gates.copy_(normalised)
            step.statistics[:, :GATES] = inverse.squeeze(2)
            activated = _affine(normalised, norm)
        write, candidate, keep, read = _activate(activated).unbind(1)
        dropped = candidate if step.mask is None else candidate * step.mask
        torch.mul(keep, step.before, out=step.after)
        step.after.addcmul_(write, dropped)
        torch.mul(read, torch.tanh(self._shown(step, norm)), out=step.hidden)

    def cell_backward(self, step: Step, norm: Norm | None, grads: Grads) -> None:
        gates = step.gates.unflatten(1, (GATES, -1))
        activated = gates if norm is None else _activate(_affine(gates, norm))
        write, candidate, keep, read = activated.unbind(1)
        shown = torch.tanh(self._seen(step, norm))
        slope = tanh_backward(grads.hidden * read, shown)
        by_read = sigmoid_backward(grads.hidden * shown, read)
        if norm is not None:
            slope = _cell_back(step, norm, grads, slope)
        cell = grads.cell + slope
        masked = cell if step.mask is None else cell * step.mask
        by_keep = sigmoid_backward(cell * step.before, keep)
        by_write = sigmoid_backward(masked * candidate, write)
        by_candidate = tanh_backward(masked * write, candidate)
        torch.mul(cell, keep, out=grads.cell)
        found = torch.stack([by_write, by_candidate, by_keep, by_read], dim=1)
        if norm is not None:
            found = _gates_back(step, norm, grads, found)
        grads.gates.copy_(found.flatten(1))

    def mix_forward(
        self, gates: Tensor, recurrent: Tensor, inputs: Tensor, made: Tensor, bias: Tensor
    ) -> None:
        of_hidden, of_input, of_bias = _parts(made)
        out = gates.unflatten(1, (GATES, -1))
        torch.add(of_bias, bias.view(GATES, -1), out=out)
        out.addcmul_(of_hidden, recurrent.unflatten(1, (GATES, -1)))
        out.addcmul_(of_input, inputs.unflatten(1, (GATES, -1)))

    def mix_backward(
        self, gates: Tensor, recurrent: Tensor, inputs: Tensor, made: Tensor, grad_bias: Tensor
    ) -> None:
        of_hidden, of_input, of_bias = _parts(made)
        grad, hidden = gates.unflatten(1, (GATES, -1)), recurrent.unflatten(1, (GATES, -1))
        grad_bias.add_(gates.sum(dim=0))
        of_bias.copy_(grad)
        by_hidden = grad * of_hidden
        torch.mul(grad, hidden, out=of_hidden)
        hidden.copy_(by_hidden)
        by_input = grad * of_input
        torch.mul(grad, inputs.unflatten(1, (GATES, -1)), out=of_input)
        grad.copy_(by_input)

    def _shown(self, step: Step, norm: Norm | None) -> Tensor:
        """What the new output is tanh of, its statistics written."""
        if norm is not None:
            assert step.statistics is not None
            cell = step.after
            _, mean, inverse = torch.native_layer_norm(cell, cell.shape[1:], None, None, EPSILON)
            step.statistics[:, GATES:] = torch.cat([mean, inverse], dim=1)
        return self._seen(step, norm)

    def _seen(self, step: Step, norm: Norm | None) -> Tensor:
        if norm is None:
            return step.after
        return torch.addcmul(norm.cell_shift, _normalised(step), norm.cell_gain)


def _parts(made: Tensor) -> tuple[Tensor, ...]:
    """d_h, d_x and d_b as [batch gates units]."""
    return made.unflatten(0, (-1, GATES)).transpose(1, 2).unbind(0)


def _affine(gates: Float[Tensor, "batch gates units"], norm: Norm) -> Tensor:
    return torch.addcmul(norm.shift.view(GATES, -1), gates, norm.gain.view(GATES, -1))


def _activate(gates: Float[Tensor, "batch gates units"]) -> Tensor:
    """Sigmoids, and tanh of the candidate, in place."""
    gates[:, :1].sigmoid_()
    gates[:, 1:2].tanh_()
    gates[:, 2:].sigmoid_()
    return gates


def _normalised(step: Step) -> Tensor:
    assert step.statistics is not None
    return (step.after - step.statistics[:, GATES, None]) * step.statistics[:, GATES + 1, None]


def _normalise_back(direct: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    """From the gradient by what is normalised, `x`, to that by what was to be; it is linear in `inverse`."""
    one = torch.ones_like(inverse[..., None])
    wanted = [True, False, False]
    found = layer_norm_backward(direct, x, x.shape[-1:], torch.zeros_like(one), one, None, None, wanted)[0]
    return found * inverse[..., None]


def _cell_back(step: Step, norm: Norm, grads: Grads, slope: Tensor) -> Tensor:
    assert grads.norms is not None
    assert step.statistics is not None
    by_gain, by_shift = grads.norms.view(-1, slope.shape[1])[2 * GATES :]
    seen = _normalised(step)
    by_gain += (slope * seen).sum(dim=0)
    by_shift += slope.sum(dim=0)
    return _normalise_back(slope * norm.cell_gain, seen, step.statistics[:, GATES + 1])


def _gates_back(step: Step, norm: Norm, grads: Grads, found: Tensor) -> Tensor:
    assert grads.norms is not None
    assert step.statistics is not None
    gates = step.gates.unflatten(1, (GATES, -1))
    table = grads.norms.view(-1, found.shape[2])
    table[:GATES] += (found * gates).sum(dim=0)
    table[GATES : 2 * GATES] += found.sum(dim=0)
    return _normalise_back(found * norm.gain.view(GATES, -1), gates, step.statistics[:, :GATES])
