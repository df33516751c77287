"""SGD that averages its weights once validation stops improving (Merity et al. 2018, algorithm 1)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Averaging:
    """The mean of `parameters` over steps, and the trigger that begins it (NT-ASGD).

    It begins when the loss of an epoch is above the least of all epochs but the last `patience` before it.
    Steps go on from the parameters themselves; as `torch.optim.ASGD(t0=0, lambd=0)` it leaves out the first.
    A change of the learning rate holds at once; in torch's ASGD, and so in the authors' runs, a step later.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], patience: int) -> None:
        self._parameters, self._patience = list(parameters), patience
        self._losses: list[float] = []  # of the epochs before it began
        self._mean: list[Tensor] = []  # empty until then
        self._steps = 0  # since then

    @property
    def begun(self) -> bool:
        """Whether there is a mean."""
        return bool(self._mean)

    def judge(self, loss: float) -> None:
        """Take the validation loss of an epoch, and begin if it is time."""
        earlier = self._losses[: -self._patience]
        if earlier and loss > min(earlier):
            self._mean = [parameter.detach().clone() for parameter in self._parameters]
        self._losses.append(loss)

    @torch.no_grad()
    def update(self) -> None:
        """Take a step's parameters into the mean, if it has begun."""
        if not self._mean:
            return
        self._steps += 1
        weight = 1 / max(1, self._steps - 1)
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            mean.lerp_(parameter, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The block in which the parameters are the mean, if it has begun."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for place, mean in enumerate(self._mean):
            self._mean[place], self._parameters[place].data = self._parameters[place].data, mean

    def state_dict(self) -> dict[str, Any]:
        """The losses, the mean and how many steps it holds."""
        return {"losses": list(self._losses), "mean": list(self._mean), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any], put: Callable[[Tensor], Tensor]) -> None:
        """Take up the state that `state_dict` gave; `put` brings a tensor to its device."""
        self._losses, self._steps = list(state["losses"]), state["steps"]
        self._mean = [put(mean).clone() for mean in state["mean"]]
