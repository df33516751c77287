"""The operations against counts, hand-made answers and compositions."""

import pytest
import torch
import torch.nn.functional as F

from metalearn.darts.operations import CANDIDATES, OPERATIONS, FactorizedReduce, candidate, operation
from metalearn.rng import generator
from metalearn.tree import count

COUNTS = [  # name, channels, stride, affine, parameters (sheet, section 7)
    ("sep_conv_3x3", 16, 1, True, 864),
    ("sep_conv_3x3", 16, 1, False, 800),
    ("sep_conv_5x5", 16, 1, True, 1376),
    ("sep_conv_5x5", 16, 2, False, 1312),
    ("sep_conv_7x7", 16, 1, True, 2144),
    ("sep_conv_7x7", 16, 1, False, 2080),
    ("dil_conv_3x3", 16, 1, True, 432),
    ("dil_conv_3x3", 16, 1, False, 400),
    ("dil_conv_5x5", 16, 1, True, 688),
    ("dil_conv_5x5", 16, 2, False, 656),
    ("skip_connect", 16, 2, False, 256),
    ("skip_connect", 16, 1, False, 0),
    ("skip_connect", 36, 2, True, 36 * 36 + 72),
    ("sep_conv_3x3", 36, 1, True, 3384),
    ("sep_conv_5x5", 36, 1, True, 4536),
    ("dil_conv_3x3", 36, 1, True, 1692),
    ("dil_conv_5x5", 36, 1, True, 2268),
    ("conv_7x1_1x7", 16, 1, True, 2 * 7 * 16 * 16 + 32),
    ("max_pool_3x3", 16, 1, True, 0),
    ("avg_pool_3x3", 16, 2, True, 0),
    ("none", 16, 2, True, 0),
]


@pytest.mark.parametrize(("name", "channels", "stride", "affine", "expected"), COUNTS)
def test_parameters(name, channels, stride, affine, expected):
    assert count(operation(name, channels, stride, affine).parameters()) == expected


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("stride", [1, 2])
def test_keeps_channels_and_divides_the_size_by_the_stride(name, stride):
    x = torch.randn(2, 4, 8, 6, generator=generator("x"))
    assert operation(name, 4, stride)(x).shape == (2, 4, 8 // stride, 6 // stride)


def test_candidates_are_the_papers_in_its_order():
    assert " ".join(CANDIDATES) == (
        "none max_pool_3x3 avg_pool_3x3 skip_connect sep_conv_3x3 sep_conv_5x5 dil_conv_3x3 dil_conv_5x5"
    )


def test_pools_count_no_padding():
    """The corner of a map has four pixels under the window."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert operation("avg_pool_3x3", 1, 1)(x)[0, 0, 0, 0] == (0 + 1 + 4 + 5) / 4
    assert operation("max_pool_3x3", 1, 1)(-x - 1)[0, 0, 0, 0] == -1
    assert operation("max_pool_3x3", 1, 2)(x)[0, 0].tolist() == [[5, 7], [13, 15]]


def _normalised(x):
    return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(("name", "kernel"), [("sep_conv_3x3", 3), ("sep_conv_5x5", 5), ("sep_conv_7x7", 7)])
def test_separable_convolution_is_applied_twice_with_the_stride_in_the_first(name, kernel):
    module = operation(name, 4, 2)
    x = torch.randn(3, 4, 8, 8, generator=generator("x"))
    depthwise, pointwise, depthwise2, pointwise2 = (p for p in module.parameters() if p.dim() == 4)
    half = F.conv2d(F.relu(x), depthwise, stride=2, padding=kernel // 2, groups=4)
    half = _normalised(F.conv2d(half, pointwise))
    whole = F.conv2d(F.relu(half), depthwise2, padding=kernel // 2, groups=4)
    torch.testing.assert_close(module(x), _normalised(F.conv2d(whole, pointwise2)))


@pytest.mark.parametrize(("name", "padding"), [("dil_conv_3x3", 2), ("dil_conv_5x5", 4)])
def test_dilated_convolution_is_applied_once(name, padding):
    module = operation(name, 4, 2)
    x = torch.randn(3, 4, 8, 8, generator=generator("x"))
    depthwise, pointwise = (p for p in module.parameters() if p.dim() == 4)
    expected = F.conv2d(F.relu(x), depthwise, stride=2, padding=padding, dilation=2, groups=4)
    torch.testing.assert_close(module(x), _normalised(F.conv2d(expected, pointwise)))


def test_factorised_7x7_goes_across_first():
    module = operation("conv_7x1_1x7", 4, 2)
    x = torch.randn(3, 4, 8, 8, generator=generator("x"))
    across, down = (p for p in module.parameters() if p.dim() == 4)
    assert across.shape == (4, 4, 1, 7)
    expected = F.conv2d(F.relu(x), across, stride=(1, 2), padding=(0, 3))
    expected = F.conv2d(expected, down, stride=(2, 1), padding=(3, 0))
    torch.testing.assert_close(module(x), _normalised(expected))


def test_factorized_reduce_sees_even_pixels_with_one_half_and_odd_ones_with_the_other():
    module = FactorizedReduce(1, 2, affine=False).eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(1.0)
    x = torch.arange(16.0).reshape(1, 1, 4, 4) - 1  # the first pixel is negative: ReLU comes first
    straight, shifted = module(x)[0] * (1 + module.norm.eps) ** 0.5
    torch.testing.assert_close(straight, torch.tensor([[0.0, 1.0], [7.0, 9.0]]))
    torch.testing.assert_close(shifted, torch.tensor([[4.0, 6.0], [12.0, 14.0]]))


def test_none_gives_zeros():
    assert not operation("none", 2, 2)(torch.ones(1, 2, 4, 4)).any()


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("stride", [1, 2])
def test_candidates_have_no_learned_scale_and_normalised_pools(name, stride):
    module = candidate(name, 4, stride)
    assert all(parameter.dim() == 4 for parameter in module.parameters())
    if "pool" in name:
        out = module(torch.randn(8, 4, 8, 8, generator=generator("x")))
        torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
        assert not any("BatchNorm" in str(part) for part in operation(name, 4, stride).modules())
