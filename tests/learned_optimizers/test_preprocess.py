"""The log-sign map against the values of Andrychowicz et al. 2016, appendix A."""

import math

import pytest
import torch

from metalearn.learned_optimizers.preprocess import log_sign

VALUES = [  # gradient, what the LSTM sees for p = 10
    (0.0, (-1.0, 0.0)),
    (1.0, (0.0, 1.0)),
    (-1.0, (0.0, -1.0)),
    (math.exp(-10), (-1.0, 1.0)),
    (-math.exp(-10), (-1.0, -1.0)),
    (math.exp(10), (1.0, 1.0)),
    (math.exp(20), (2.0, 1.0)),
    (0.5 * math.exp(-10), (-1.0, 0.5)),
]


@pytest.mark.parametrize(("gradient", "expected"), VALUES)
def test_values(gradient, expected):
    seen = log_sign(torch.tensor([gradient], dtype=torch.float64), 10.0)
    torch.testing.assert_close(seen, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [5.0, 10.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_continuous_at_the_threshold(p, sign):
    threshold = math.exp(-p) * torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=torch.float64)
    below, above = log_sign(sign * threshold, p)
    torch.testing.assert_close(below, above, rtol=0, atol=1e-8)


@pytest.mark.parametrize("p", [5.0, 10.0])
def test_the_definition_holds_everywhere(p):
    """The paper's two cases, written as they stand there."""
    gradients = torch.logspace(-8, 4, 97, dtype=torch.float64)
    gradients = torch.cat([-gradients, gradients])

    def defined(gradient: float) -> tuple[float, float]:
        if abs(gradient) >= math.exp(-p):
            return math.log(abs(gradient)) / p, math.copysign(1, gradient)
        return -1.0, math.exp(p) * gradient

    expected = torch.tensor([defined(gradient) for gradient in gradients.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_sign(gradients, p), expected)


def test_derivative_is_finite_at_zero():
    gradient = torch.zeros(3, requires_grad=True)
    log_sign(gradient, 10.0).sum().backward()
    torch.testing.assert_close(gradient.grad, torch.full((3,), math.exp(10)))
