"""The paper's generator against its equations, written out in loops."""

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.hypernetworks.static.hypernetize import hypernetize
from metalearn.hypernetworks.static.layer_embedding import Family
from metalearn.registry import UserError
from metalearn.tree import count

KERNELS = {"one": (16, 16, 3, 3), "wide": (32, 48, 3, 3), "five": (16, 32, 5, 5)}


class Kernels(nn.Module):
    """Parameters of given shapes in convolutions."""

    def __init__(self, shapes):
        super().__init__()
        for name, (outputs, inputs, *window) in shapes.items():
            setattr(self, name, nn.Conv2d(inputs, outputs, tuple(window), bias=False))


def _generated(shapes, options):
    return hypernetize(Kernels(shapes), options, lambda _: True).generator


def _numpy(tensor):
    return tensor.detach().double().numpy()


def _kernel(family, number, blocks):
    """Equations 1 to 3 for layer `number` of a family, `blocks` = (over inputs, over outputs)."""
    inputs, outputs, window = family.block[1:]
    taps, before = int(np.prod(window)), sum(t.rows * t.columns for t in family.tilings[:number])
    z = _numpy(family.embeddings[0])
    size = z.shape[1]
    weight_in, bias_in = _numpy(family.weight_in), _numpy(family.bias_in)
    weight_out, bias_out = _numpy(family.weight_out), _numpy(family.bias_out)
    hidden = len(weight_out)
    kernel = np.zeros((blocks[1] * outputs, blocks[0] * inputs, taps))
    for row in range(blocks[0]):
        for column in range(blocks[1]):
            embedding = z[before + row * blocks[1] + column]
            for i in range(inputs):
                place = slice(i * hidden, (i + 1) * hidden)
                a = weight_in.reshape(size, -1)[:, place].T @ embedding + bias_in[place]
                for o in range(outputs):
                    for tap in range(taps):
                        value = weight_out[:, o * taps + tap] @ a + bias_out[o * taps + tap]
                        kernel[column * outputs + o, row * inputs + i, tap] = value
    return kernel.reshape(*kernel.shape[:2], *window)


def test_kernels_are_those_of_the_equations(generator_options):
    torch.manual_seed(0)
    generator = _generated(KERNELS, generator_options(block=16, embedding=5, hidden=4)).double()
    for parameter in generator.parameters():  # biases too
        nn.init.normal_(parameter)
    made = generator()
    three, five = generator.families["kernel_3x3_16x16"], generator.families["kernel_5x5_16x16"]
    for name, expected in {
        "one.weight": _kernel(three, 0, (1, 1)),
        "wide.weight": _kernel(three, 1, (3, 2)),
        "five.weight": _kernel(five, 0, (2, 1)),
    }.items():
        np.testing.assert_allclose(_numpy(made[name]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "size", "embeddings", "shared"),
    [((16, 16, 7, 7), 4, 4, 4_240), ((16, 16, 3, 3), 64, 64, 75_920), ((64, 32, 3, 3), 64, 8 * 64, 75_920)],
)
def test_parameters_are_as_many_as_the_paper_counts(generator_options, shape, size, embeddings, shared):
    generator = _generated({"layer": shape}, generator_options(block=16, embedding=size, hidden=size))
    (family,) = generator.families.values()
    assert family.embeddings.numel() == embeddings
    assert count(generator.parameters()) == embeddings + shared


def test_low_rank_output_map(generator_options):
    full = generator_options(block=16, embedding=8, hidden=6)
    low = generator_options(block=16, embedding=8, hidden=6, rank=2)
    generator = _generated({"layer": (16, 16, 3, 3)}, low)
    saved = 6 * 144 - (6 * 2 + 2 * 144)
    assert count(_generated({"layer": (16, 16, 3, 3)}, full).parameters()) - saved == count(
        generator.parameters()
    )
    slices = generator()["layer.weight"].transpose(0, 1).flatten(1)  # one for each input
    assert torch.linalg.matrix_rank(slices, rtol=1e-5) == 2


def test_sides_that_blocks_do_not_divide(generator_options):
    shapes = {"layer": (16, 24, 3, 3)}
    with pytest.raises(UserError, match=r"layer.weight: a side of 24 is no multiple of block 16"):
        _generated(shapes, generator_options(block=16, undivided="refuse"))
    (family,) = _generated(shapes, generator_options(block=16)).families.values()
    assert isinstance(family, Family)
    assert family.block[1:3] == (12, 16)
    assert family.embeddings.shape == (1, 2, 3)


def test_each_condition_has_weights_of_its_own(generator_options):
    generator = _generated({"layer": (4, 4, 3, 3)}, generator_options(conditions=3))
    each = [generator(k)["layer.weight"] for k in range(3)]
    assert not torch.allclose(each[0], each[1])
    stacked = torch.func.vmap(lambda k: generator(k)["layer.weight"])(torch.arange(3))
    torch.testing.assert_close(stacked, torch.stack(each))
    with pytest.raises(UserError, match="3 conditions; say which"):
        generator()
    with pytest.raises(UserError, match="condition: got 3, must be 0 to 2"):
        generator(3)
