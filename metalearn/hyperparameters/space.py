"""The space of hyper-parameters: which there are, where they start, and how parameters feel them."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.hyperparameters.config import InnerRunOptions
from metalearn.registry import UserError
from metalearn.tree import Tree

ALL = "network"  # stands for every layer where they share a hyper-parameter


class Space:
    """Logarithms of learning rates and of L2 penalties for parameters of given names.

    meta = {"log_rate": [step layer], each side 1 where it is shared; absent where rates are fixed,
            "log_penalty/NAME": []} for NAME `network` or a layer, or the shape of the parameter NAME}.

    A layer is a module that owns parameters: a weight and its bias share one.
    Raises UserError where nothing is left to learn.
    """

    def __init__(self, options: InnerRunOptions, params: Tree) -> None:
        if options.learning_rates == "fixed" and options.penalties == "none":
            raise UserError(
                "method.learning_rates: got fixed, with method.penalties=none there is nothing to learn; "
                "choose others, e.g. method.learning_rates=global, or method.penalties=global"
            )
        self.options, self.params = options, params
        self.layers = _layers(params)
        self.by_step = options.learning_rates in ("per_step", "per_layer_and_step")
        self.by_layer = options.learning_rates in ("per_layer", "per_layer_and_step")

    @property
    def groups(self) -> dict[str, list[str]]:
        """The names of the parameters that share a learning rate."""
        return self.layers if self.by_layer else {ALL: list(self.params)}

    def start(self) -> Tree:
        """Every hyper-parameter at its starting value."""
        options = self.options
        return self.fill(
            lambda shape: torch.full(shape, math.log(options.learning_rate)),
            lambda shape: torch.full(shape, math.log(options.penalty)),
        )

    def fill(
        self, rates: Callable[[tuple[int, ...]], Tensor], penalties: Callable[[tuple[int, ...]], Tensor]
    ) -> Tree:
        """A point of the space, from functions that give values for a shape."""
        like, meta = next(iter(self.params.values())), {}
        if self.options.learning_rates != "fixed":
            meta["log_rate"] = rates((self.options.horizon if self.by_step else 1, len(self.groups)))
        for name, shape in self._penalty_shapes().items():
            meta[f"log_penalty/{name}"] = penalties(shape)
        return {key: leaf.to(like) for key, leaf in meta.items()}

    def rates(self, meta: Tree, step: Float[Tensor, ""]) -> dict[str, float | Tensor]:
        """The learning rate of each group after `step` steps; past the horizon the last one stays."""
        if self.options.learning_rates == "fixed":
            return dict.fromkeys(self.groups, self.options.learning_rate)
        table = meta["log_rate"]
        row = step.long().clamp(max=len(table) - 1).reshape(1)
        return dict(zip(self.groups, table.index_select(0, row)[0].exp().unbind(), strict=True))

    def penalty(self, meta: Tree, params: Tree) -> Float[Tensor, ""]:
        """Half the sum of penalty times squared parameter, over every parameter of the network."""
        names = {
            name: self._penalty_name(layer, name) for layer, found in self.layers.items() for name in found
        }
        terms = [
            (meta[f"log_penalty/{names[name]}"].exp() * leaf.square()).sum() for name, leaf in params.items()
        ]
        return torch.stack(terms).sum() / 2

    @property
    def penalised(self) -> bool:
        """Whether there is a penalty at all."""
        return self.options.penalties != "none"

    def _penalty_shapes(self) -> dict[str, tuple[int, ...]]:
        if not self.penalised:
            return {}
        names = {
            self._penalty_name(layer, name): tuple(self.params[name].shape)
            for layer, found in self.layers.items()
            for name in found
        }
        return names if self.options.penalties == "per_weight" else dict.fromkeys(names, ())

    def _penalty_name(self, layer: str, name: str) -> str:
        return {"global": ALL, "per_layer": layer}.get(self.options.penalties, name)


def _layers(params: Tree) -> dict[str, list[str]]:
    """The parameters' names by the module that owns them."""
    layers: dict[str, list[str]] = {}
    for name in params:
        layers.setdefault(name.rpartition(".")[0] or ALL, []).append(name)
    return layers
