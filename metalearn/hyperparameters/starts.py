"""Fresh starts of one network: its own initialisation, drawn again by key."""

import copy

import torch
from torch import nn

from metalearn.network import Network
from metalearn.registry import UserError
from metalearn.rng import Key, seeded
from metalearn.tree import Tree


class Starts:
    """Draws a network's parameters anew, by every module's own `reset_parameters`.

    A network is built under `seeded(*built)`; that a reset under the same key gives the same weights shows
    that `reset_parameters` is all there is to its start. Raises UserError where it is not.
    """

    def __init__(self, network: Network, built: tuple[Key, ...]) -> None:
        parameter = next(network.parameters())
        self.device = parameter.device
        self.network = copy.deepcopy(network).cpu()
        again = self.draw(*built)
        if not all(torch.equal(leaf, again[name]) for name, leaf in network.named_parameters()):
            raise UserError(
                f"network {type(network).__name__}: its start cannot be drawn again by torch's own "
                "initialisation; set network.deviation=null, or choose network=mlp"
            )

    def draw(self, *key: Key) -> Tree:
        """Parameters on the network's device."""
        with seeded(*key), torch.no_grad():
            for module in self.network.modules():
                _reset(module)
        return {name: leaf.detach().clone().to(self.device) for name, leaf in self.network.named_parameters()}


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
    elif list(module.parameters(recurse=False)):
        raise UserError(
            f"network: {type(module).__name__} has no reset_parameters, so that no fresh start of it can be "
            "drawn; choose a network of torch's own layers, e.g. network=mlp"
        )
