"""The search step as the peers run it, on our plain supernet: what they cost, without their code.

As in quark0/darts: images and activations in NCHW, in each pass a backward pass to all that could be
differentiated, a second network for the unrolled weights, weights moved in place and back for the difference.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from metalearn.darts.supernet import Supernet
from metalearn.task import Task

RADIUS = 0.01  # of the finite difference


class PeerSearch:
    """One step of alpha and one of the weights, in first or second order."""

    def __init__(self, network: Supernet, task: Task, second_order: bool) -> None:
        self.network, self.task, self.second_order = network.train(), task, second_order
        self.alpha = {
            kind: (1e-3 * torch.randn(choice.shape)).requires_grad_()
            for kind, choice in network.choices.items()
        }
        self.alpha_optimizer = torch.optim.Adam(
            self.alpha.values(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3
        )
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)

    def step(self, index: int) -> Tensor:
        """As `Darts.step`."""
        train, valid = (self.task.batch(split, index) for split in ("search_train", "search_valid"))
        self.alpha_optimizer.zero_grad()
        if self.second_order:
            self._unrolled(train, valid)
        else:
            self._loss(self.network, valid).backward()
        self.alpha_optimizer.step()
        self.optimizer.zero_grad()
        loss = self._loss(self.network, train)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        return loss.detach()

    def _loss(self, network: Supernet, batch) -> Tensor:
        """The plain network's, in NCHW."""
        older = newer = network.stem(batch.x)
        for cell in network.cells:
            weights = self.alpha["reduce" if cell.reduction else "normal"].softmax(dim=-1)
            older, newer = newer, cell(older, newer, weights, None, 0.0, 0.0)
        return F.cross_entropy(network.classifier(newer.mean(dim=(2, 3))), batch.y)

    def _unrolled(self, train, valid) -> None:
        params = list(self.network.parameters())
        grads = torch.autograd.grad(self._loss(self.network, train), params)
        unrolled = copy.deepcopy(self.network)
        with torch.no_grad():
            for leaf, grad in zip(unrolled.parameters(), grads, strict=True):
                leaf.sub_(0.025 * grad)
        self._loss(unrolled, valid).backward()
        direction = [leaf.grad for leaf in unrolled.parameters()]
        radius = RADIUS / torch.cat([grad.flatten() for grad in direction if grad is not None]).norm()
        sides = []
        for shift in (radius, -2 * radius):
            self._move(direction, shift)
            sides.append(torch.autograd.grad(self._loss(self.network, train), list(self.alpha.values())))
        self._move(direction, radius)
        for leaf, positive, negative in zip(self.alpha.values(), *sides, strict=True):
            assert leaf.grad is not None
            leaf.grad -= 0.025 * (positive - negative) / (2 * radius)

    @torch.no_grad()
    def _move(self, direction: list[Tensor | None], by: Tensor) -> None:
        for leaf, grad in zip(self.network.parameters(), direction, strict=True):
            assert grad is not None
            leaf.add_(grad, alpha=float(by))
