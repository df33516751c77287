"""Mixed edges of a supernet: all channels through the candidates, or a part of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metalearn.darts.cell import drop_path
from metalearn.darts.operations import candidate


class MixedEdge(nn.Module):
    """The candidates of one edge; `none` holds its share of the weights and adds nothing.

    `names` are the operations in the order of the weights, None for those that are not built.
    """

    def __init__(self, channels: int, stride: int, names: Sequence[str | None]) -> None:
        super().__init__()
        self.places = {name: place for place, name in enumerate(names) if name and name != "none"}
        self.operations = nn.ModuleDict({name: candidate(name, channels, stride) for name in self.places})

    def runs(self, running: list[bool] | None) -> bool:
        """Whether there is anything to compute."""
        return any(running is None or running[place] for place in self.places.values())

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        weights: Float[Tensor, " operation"],
        running: list[bool] | None,
        drop: float,
        skip_dropout: float,
    ) -> Tensor:
        """The sum of the running operations' outputs by `weights`, in their order."""
        mixed = x.new_zeros(())
        for name, operation in self.operations.items():
            place = self.places[name]
            if running is None or running[place]:
                mixed = mixed + weights[place] * _regularised(operation, x, drop, skip_dropout)
        return mixed


class PartialEdge(nn.Module):
    """An edge that mixes one channel in `parts` and lets the others by (PC-DARTS, Xu et al. 2020).

    The first channels pass the operations, the others a 2x2 max pool where the edge has stride 2; then
    both are shuffled, so that the next edge sees others first. What goes by has the weight of all the edge's
    operations together: 1, or the edge's share under edge normalisation, as in the authors' code.
    """

    def __init__(self, channels: int, stride: int, names: Sequence[str | None], parts: int) -> None:
        super().__init__()
        self.stride, self.parts, self.mixed = stride, parts, channels // parts
        self.edge = MixedEdge(self.mixed, stride, names)

    def runs(self, running: list[bool] | None) -> bool:
        """Whether there is anything to compute: `none` lets channels by, too."""
        return running is None or any(running)

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        weights: Float[Tensor, " operation"],
        running: list[bool] | None,
        drop: float,
        skip_dropout: float,
    ) -> Tensor:
        """All channels, shuffled."""
        part, rest = x[:, : self.mixed], x[:, self.mixed :]
        if self.edge.runs(running):
            mixed = self.edge(part, weights, running, drop, skip_dropout)
        else:
            mixed = torch.zeros_like(part[:, :, :: self.stride, :: self.stride])
        if self.stride == 2:
            rest = nn.functional.max_pool2d(rest, 2)
        return shuffle_channels(torch.cat([mixed, weights.sum() * rest], dim=1), self.parts)


def shuffle_channels(
    x: Float[Tensor, "batch channel height width"], groups: int
) -> Float[Tensor, "batch channel height width"]:
    """The first channel of each group, then the second of each, and so on."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _regularised(operation: nn.Module, x: Tensor, drop: float, skip_dropout: float) -> Tensor:
    """An identity's dropout, any other operation's drop path, as in the authors' code of both."""
    y = operation(x)
    if isinstance(operation, nn.Identity):
        return nn.functional.dropout(y, skip_dropout) if skip_dropout else y
    return drop_path(y, drop) if drop else y
