"""The derived network's cells on the CPU, faster: the same sums, in another order of memory and operations.

Maps lie channels-last, so that a 1x1 convolution is one product of matrices over all pixels (torch takes a
slow path for small ones); every state goes through its ReLU once and not once for each operation that begins
with one; dilated depthwise convolutions have a backward pass of their own, which is differentiated once.
"""

from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.darts.cell import Cell, drop_path
from metalearn.darts.fused.depthwise import Depthwise
from metalearn.darts.operations import FactorizedReduce


def applies(x: Tensor) -> bool:
    """Whether these forms are for this input: not on a GPU, and not where a compiler sees all operations.

    Nor under autocast: in bf16 and channels-last, torch's dilated depthwise convolution now and then leaves
    numbers that are none in its weight's gradient (2.13).
    """
    plain = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and not plain


def forward(cell: Cell, older: Tensor, newer: Tensor, drop: float) -> Tensor:
    """The cell's output for inputs that went through their ReLU before: each input of a cell does."""
    nodes = [_operation(cell.inputs.older, older), _operation(cell.inputs.newer, newer)]
    rectified: dict[int, Tensor] = {}
    edges = iter(cell.edges)
    for node in cell.plan.nodes:
        total: Tensor | None = None
        for edge in node:
            output = _edge(next(edges), nodes, rectified, edge.source, drop)
            total = output if total is None else total + output
        assert total is not None  # a node has two edges
        nodes.append(total)
    return torch.cat([nodes[index] for index in cell.plan.concat], dim=1)


def _edge(
    edge: nn.Module, nodes: list[Tensor], rectified: dict[int, Tensor], source: int, drop: float
) -> Tensor:
    if _begins_with_relu(edge):
        if source not in rectified:
            rectified[source] = torch.relu(nodes[source])
        output = _operation(edge, rectified[source])
    else:
        output = edge(nodes[source])
    return drop_path(output, drop) if drop and not isinstance(edge, nn.Identity) else output


def _begins_with_relu(edge: nn.Module) -> bool:
    if isinstance(edge, nn.Sequential):
        return isinstance(edge[0], nn.ReLU)
    return isinstance(edge, FactorizedReduce)


def _operation(edge: nn.Module, x: Tensor) -> Tensor:
    """What an operation that begins with a ReLU makes of what went through it."""
    if isinstance(edge, FactorizedReduce):
        places = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
        both = [
            _pointwise(layer, at) for layer, at in zip((edge.straight, edge.shifted), places, strict=True)
        ]
        return edge.norm(torch.cat(both, dim=1))
    for layer in islice(edge.children(), 1, None):
        x = x.relu_() if isinstance(layer, nn.ReLU) else _layer(layer, x)  # of a normalisation's output
    return x


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return layer(x)
    if layer.kernel_size == (1, 1):
        return _pointwise(layer, x)
    even = x.shape[2] % 2 == x.shape[3] % 2 == 0
    if layer.dilation == (2, 2) and even and layer.training:
        return Depthwise.apply(x, layer.weight, layer.stride[0], layer.dilation[0])  # type: ignore[return-value]
    return layer(x)


def _pointwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution without a bias, at every pixel of `x` whatever its stride."""
    return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1)).permute(0, 3, 1, 2)
