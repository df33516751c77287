"""One step of the perceptron rule by a C kernel, outside any graph."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.kernels import build
from metalearn.learned_optimizers.fused.step import untransformed

SOURCE = Path(__file__).with_name("perceptron.c")


class Perceptron(NamedTuple):
    """Numbers of the rule, as its options name them."""

    decays: Sequence[float]
    square_decay: float
    epsilon: float
    step_multiplier: float
    magnitude_multiplier: float


class Place(NamedTuple):
    """Parameters and memory."""

    theta: Float[Tensor, "problems coordinates"]
    momenta: Float[Tensor, "problems decays coordinates"]
    square: Float[Tensor, "problems coordinates"]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("problems", "coordinates", "tensors", "decays", "layers")),
        *((name, ctypes.c_double) for name in ("square_decay", "epsilon", "step", "magnitude")),
    ]


class _Step(ctypes.Structure):
    _names = ("sizes", "widths", "decays", "weights", "grad", "theta", "momenta", "square")
    _fields_ = [(name, ctypes.c_void_p) for name in (*_names, "theta_after", "momenta_after", "square_after")]


def fusable(*tensors: Tensor) -> bool:
    """Whether the kernel may run: on the CPU in one full precision, where no gradient is asked for."""
    followed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not followed and untransformed(*tensors) and build(tensors[0].dtype, SOURCE).library is not None


def fused_perceptron(
    rule: Perceptron,
    maps: Sequence[Tensor],
    sizes: Sequence[int],
    place: Place,
    grad: Float[Tensor, "problems coordinates"],
) -> Place:
    """Where the rule goes from `place`.

    `maps`: of each map a weight [inputs outputs] and a bias, the first one's [problems outputs]; `sizes`: of
    the tensors that make up a problem.
    """
    maps, place, grad = _contiguous(maps), Place(*_contiguous(place)), grad.contiguous()
    after = Place(*(torch.empty_like(leaf) for leaf in place))
    shape = _Shape(*place.theta.shape, len(sizes), len(rule.decays), len(maps) // 2, *rule[1:])
    widths = [len(maps[0]), *(weight.shape[1] for weight in maps[::2])]
    lists = [
        (ctypes.c_long * len(sizes))(*sizes),
        (ctypes.c_long * len(widths))(*widths),
        (ctypes.c_double * len(rule.decays))(*rule.decays),
        (ctypes.c_void_p * len(maps))(*(leaf.data_ptr() for leaf in maps)),
    ]
    pointers = [leaf.data_ptr() for leaf in (grad, *place, *after)]
    step = _Step(*map(ctypes.addressof, lists), *pointers)
    library = build(grad.dtype, SOURCE).library
    assert library is not None
    library.perceptron_step(ctypes.byref(shape), ctypes.byref(step), ctypes.c_long(torch.get_num_threads()))
    return after


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]
