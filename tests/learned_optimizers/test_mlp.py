"""The perceptron's rule against one written with loops over problems and tensors."""

import pytest
import torch
from torch.nn import functional as F

from metalearn.learned_optimizers.factored import Factors
from metalearn.learned_optimizers.layout import Layout
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.tree import count

CPU = torch.device("cpu")
SHAPES = {"kernel": (2, 1, 2, 2), "bias": (2,), "matrix": (3, 2)}
LAYOUT = Layout(SHAPES, CPU)
THETA = torch.randn(2, 16, generator=generator("theta")).double()
GRADIENTS = torch.randn(4, 2, 16, generator=generator("gradients")).double()
DECAYS, TIMES = (0.9, 0.99, 0.999), (1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000)


@pytest.mark.parametrize(("changes", "expected"), [({}, 118), ({"hidden": [8]}, 8 * 22 + 2 * 9)])
def test_parameter_count(kit, changes, expected):
    """10 features and 11 times to 4 to 4 to 2."""
    assert count(kit.build_rule("mlp", **changes).init(generator(0))) == expected


def _factored(square):
    """Row means times column means over the mean, of a tensor seen as a matrix."""
    matrix = square.flatten(1) if square.dim() > 1 else square.unsqueeze(1)
    product = matrix.mean(1, keepdim=True) * matrix.mean(0, keepdim=True) / matrix.mean()
    return product.view_as(square)


def _step(meta, step, param, grads, factored):
    """One tensor's update from its gradients so far."""
    momenta, square = [torch.zeros_like(param) for _ in DECAYS], torch.zeros_like(param)
    for grad in grads:
        momenta = [decay * m + (1 - decay) * grad for decay, m in zip(DECAYS, momenta, strict=True)]
        square = 0.999 * square + 0.001 * grad**2
    root = square.sqrt()
    features = [grads[-1], param, root, 1 / (root + 1e-8), *momenta, *(m / (root + 1e-8) for m in momenta)]
    if factored:
        inverse = 1 / (_factored(square).sqrt() + 1e-8)
        features += [inverse, grads[-1] * inverse, *(m * inverse for m in momenta)]
    columns = [(f / f.square().mean().sqrt()).flatten() for f in features]
    times = [torch.full_like(columns[0], step / time - 1).tanh() for time in TIMES]
    x = torch.stack([*columns, *times], 1)
    for layer in range(3):
        x = F.linear(F.relu(x) if layer else x, meta[f"layer.{layer}.weight"].T, meta[f"layer.{layer}.bias"])
    return (0.001 * x[:, 0] * torch.exp(0.001 * x[:, 1])).view_as(param)


@pytest.mark.parametrize(("factored", "graph"), [(False, False), (False, True), (True, False)])
def test_equals_loops(kit, factored, graph):
    """Within a graph the kernel does not run."""
    rule = kit.build_rule("mlp", factored=factored)
    meta = {key: leaf.requires_grad_(graph) for key, leaf in kit.moved(rule).items()}
    found = kit.follow(rule, meta, THETA, GRADIENTS, LAYOUT).params["theta"]
    for problem in range(2):
        for name, start in LAYOUT.unflatten(THETA).items():
            param, grads = start[problem], [LAYOUT.unflatten(grad)[name][problem] for grad in GRADIENTS]
            for step in range(4):
                param = param - _step(meta, step, param, grads[: step + 1], factored)
            torch.testing.assert_close(LAYOUT.unflatten(found)[name][problem], param, rtol=1e-9, atol=1e-12)


def test_no_scale_of_the_loss_is_seen(kit):
    rule = kit.build_rule("mlp", epsilon=1e-30, factored=True)
    meta = kit.moved(rule)
    plain, scaled = (
        kit.follow(rule, meta, THETA, factor * GRADIENTS, LAYOUT).params["theta"] for factor in (1.0, 1e6)
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=0)


def test_factors_of_a_product_are_exact():
    """A matrix of rank one is its means' product; a vector always is; a tensor of zeros stays zero."""
    rows, columns = torch.rand(1, 3, 1) + 1, torch.rand(1, 1, 2) + 1
    flat = torch.cat([torch.zeros(1, 8), torch.rand(1, 2), (rows * columns).flatten(1)], 1)
    factors = Factors(LAYOUT)
    means = factors.means(flat)
    assert means[0].shape == (1, 2 + 2 + 3)
    assert means[1].shape == (1, 4 + 1 + 2)
    torch.testing.assert_close(factors.product(*means), flat)


def test_factors_of_nothing_are_refused():
    with pytest.raises(UserError, match=r"rule\.factored: a parameter without elements"):
        Factors(Layout({"empty": (0, 3)}, CPU))
