"""Sequences that a network goes on with: it reads what it has written, one input at a time."""

import torch
from jaxtyping import Shaped
from torch import Generator, Tensor

from metalearn.network import Network
from metalearn.registry import UserError
from metalearn.task import Continued
from metalearn.tree import Tree


@torch.no_grad()
def generate(
    network: Network,
    task: Continued,
    prompt: Shaped[Tensor, "batch read ..."],
    length: int,
    rng: Generator,
    temperature: float,
) -> Shaped[Tensor, "batch length ..."]:
    """`length` >= 1 inputs that follow `prompt`, drawn by the task; the network is in evaluation.

    Raises UserError where the network's outputs are not finite.
    """
    drawn: list[Tensor] = []
    state: Tree | None = None
    for _ in range(length):
        output = network(prompt, state)
        if not drawn and not output.logits.isfinite().all():
            raise UserError("the network's outputs are not finite: its run diverged; take another run")
        drawn.append(task.draw(output.logits[:, -1], rng, temperature))
        prompt, state = drawn[-1][:, None], output.state
    return torch.stack(drawn, dim=1)
