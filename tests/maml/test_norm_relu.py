"""The hand-written derivatives of stacked layers against finite differences and torch's own, in float64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from metalearn.maml.norm_relu import NormRelu
from metalearn.maml.stacked import Columns, Product
from metalearn.registry import UserError
from metalearn.rng import generator


def random(*shape, grad=True):
    values = torch.randn(shape, generator=generator("layers", *shape), dtype=torch.float64)
    return values.requires_grad_(grad)


def norm_relu(y, scale, shift):
    return NormRelu.apply(y, scale, shift, 0.1)


@pytest.mark.parametrize("own", [1, 3])
def test_norm_relu_has_the_derivatives_of_finite_differences(own):
    """`own` 1: scale and shift shared by the 3 tasks."""
    inputs = random(3, 7, 2), random(own, 1, 2), random(own, 1, 2)
    assert gradcheck(norm_relu, inputs)
    assert gradgradcheck(norm_relu, inputs)


def test_norm_relu_computes_as_torch():
    y, scale, shift = random(3, 7, 2), random(3, 1, 2), random(3, 1, 2)
    for task, found in enumerate(norm_relu(y, scale, shift)):
        one = F.batch_norm(y[task], None, None, scale[task, 0], shift[task, 0], training=True, eps=0.1)
        torch.testing.assert_close(found, one.relu(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)])
def test_product_has_the_derivatives_of_finite_differences(needed):
    inputs = random(2, 5, 3, grad=needed[0]), random(2, 3, 4, grad=needed[1])
    assert gradcheck(Product.apply, inputs)
    assert gradgradcheck(Product.apply, inputs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 4), (2, 1)])
def test_columns_have_the_derivatives_of_finite_differences(size, stride):
    x = random(2, 2, *size, 2)
    assert gradcheck(Columns.apply, (x, stride))
    assert gradgradcheck(Columns.apply, (x, stride))


def third_derivative(layer, *inputs):
    (slope,) = torch.autograd.grad((layer(*inputs) ** 3).sum(), inputs[:1], create_graph=True)
    (curve,) = torch.autograd.grad((slope**2).sum(), inputs[:1], create_graph=True)
    return torch.autograd.grad((curve**2).sum(), inputs[:1])


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [(norm_relu, [(3, 7, 2), (1, 1, 2), (1, 1, 2)]), (Product.apply, [(3, 7, 2), (3, 2, 4)])],
)
def test_a_third_derivative_is_refused_and_not_left_out(layer, shapes):
    """torch drops such a term in silence: it was 91 % of a norm's third derivative."""
    with pytest.raises(UserError, match=r"no third derivative; set method\.vectorise=false"):
        third_derivative(layer, *(random(*shape) for shape in shapes))
