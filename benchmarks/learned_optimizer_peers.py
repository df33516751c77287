"""The LSTM optimizer's meta-training step in peers' hands: `higher`, `torchopt`, and its bare products.

All to first order, all coordinates of all tensors in one product, as ours.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import higher
import torch
import torchopt
from torch import Tensor, nn
from torch.func import functional_call

from metalearn.learned_optimizers.preprocess import log_sign

UNROLL = 20
Loss = Callable[[Any], Tensor]  # of the network, called as the network is


class Case(NamedTuple):
    """What is optimized, and by which LSTM."""

    network: nn.Module
    losses: Sequence[Loss]  # one for each step
    inputs: int  # 2: log-sign features
    scale: float


class Lstm(nn.Module):
    """The coordinatewise optimizer from torch's own cells."""

    def __init__(self, inputs: int, scale: float) -> None:
        super().__init__()
        self.inputs, self.scale = inputs, scale
        self.cells = nn.ModuleList([nn.LSTMCell(inputs, 20), nn.LSTMCell(20, 20)])
        self.linear = nn.Linear(20, 1)

    def forward(self, gradient: Tensor, state: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        features = log_sign(gradient, 10.0) if self.inputs == 2 else gradient.unsqueeze(1)
        after: list[Any] = []
        for cell, before in zip(self.cells, state, strict=True):
            after.append(cell(features, before))
            features = after[-1][0]
        return self.scale * self.linear(features).squeeze(1), after

    def updates(self, grads: Sequence[Tensor], state: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
        """One for each tensor, and the next state."""
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        output, after = self(flat, state)
        parts = output.split([grad.numel() for grad in grads])
        return [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)], after


class LstmOptimizer(torch.optim.Optimizer):
    """What `higher` makes differentiable."""

    def __init__(self, params: Any, network: Lstm) -> None:
        super().__init__(params, {"network": network})

    def step(self, closure: Any = None) -> Any:
        raise NotImplementedError("it only runs inside higher")


class DifferentiableLstm(higher.optim.DifferentiableOptimizer):
    """Its differentiable form."""

    def _update(self, grouped_grads: Any, **_: Any) -> None:
        (group,), (grads,) = self.param_groups, grouped_grads
        parts, self.hidden = group["network"].updates(grads, getattr(self, "hidden", [None, None]))
        for place, part in enumerate(parts):
            group["params"][place] = group["params"][place] + part


def with_higher(cases: Sequence[Case]) -> Callable[[], object]:
    """One meta-gradient of each case after the other, then Adam; gradients are detached in its callback."""
    higher.register_optim(LstmOptimizer, DifferentiableLstm)  # type: ignore[arg-type]
    lstm = Lstm(cases[0].inputs, cases[0].scale)
    adam = torch.optim.Adam(lstm.parameters(), 1e-3)

    def unroll(case: Case) -> None:
        _restart(case)
        optimizer, losses = LstmOptimizer(case.network.parameters(), lstm), []
        with higher.innerloop_ctx(case.network, optimizer) as (fast, learner):
            for loss in case.losses:
                losses.append(loss(fast))
                learner.step(losses[-1], grad_callback=lambda grads: [grad.detach() for grad in grads])
            torch.stack(losses).sum().backward()

    return _meta_step(adam, cases, unroll)


def with_torchopt(cases: Sequence[Case]) -> Callable[[], object]:
    """The same by a gradient transformation of TorchOpt's, in its functional form."""
    lstm = Lstm(cases[0].inputs, cases[0].scale)
    adam = torch.optim.Adam(lstm.parameters(), 1e-3)

    def update(grads: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:  # noqa: ARG001
        return lstm.updates(grads, state)

    def init(params: Any) -> Any:  # noqa: ARG001
        return [None, None]

    transformation = torchopt.base.GradientTransformation(init, update)  # type: ignore[arg-type]

    def unroll(case: Case) -> None:
        _restart(case)
        names = [name for name, _ in case.network.named_parameters()]
        params: Any = [leaf.detach().requires_grad_() for leaf in case.network.parameters()]
        state, losses = transformation.init(params), []
        for loss in case.losses:
            now = dict(zip(names, params, strict=True))
            losses.append(loss(lambda *inputs, now=now: functional_call(case.network, now, inputs)))
            grads = torch.autograd.grad(losses[-1], params, retain_graph=True)
            updates, state = transformation.update(list(grads), state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        torch.stack(losses).sum().backward()

    return _meta_step(adam, cases, unroll)


def bare_lstm(coordinates: int, inputs: int) -> Callable[[], object]:
    """The floor: an unroll's products, forward and backward, and its sigmoids and tanh, forward, by torch."""
    sizes = [(inputs + 20, 80), (40, 80), (20, 1)]
    sides = [
        (torch.randn(coordinates, rows), torch.randn(rows, columns), torch.randn(coordinates, columns))
        for rows, columns in sizes
    ]
    gates, candidates = torch.randn(coordinates, 60), torch.randn(coordinates, 20)

    def step() -> None:
        for _ in range(UNROLL):
            for x, weight, grad in sides:
                _ = x @ weight, grad @ weight.t(), x.t() @ grad
            for _ in range(2):
                _ = gates.sigmoid(), candidates.tanh(), candidates.tanh()

    return step


def _meta_step(
    adam: torch.optim.Optimizer, cases: Sequence[Case], unroll: Callable[[Case], None]
) -> Callable[[], object]:
    def step() -> None:
        adam.zero_grad()
        for case in cases:
            unroll(case)
        adam.step()

    return step


def _restart(case: Case) -> None:
    for parameter in case.network.parameters():
        nn.init.normal_(parameter, std=0.01)
