# ruff: noqa: ARG002  (problems have the signatures of Problem)
"""Modules that functional_call would corrupt, and what has no second derivative, are refused."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import (
    FiniteDifferenceOptions,
    ForwardOptions,
    TruncatedOptions,
    UnrolledOptions,
)
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.forward import Forward
from metalearn.hypergradient.guard import check_module, second_order
from metalearn.hypergradient.unroll import Truncated, Unrolled
from metalearn.inner_optimizers import sgd
from metalearn.problem import Inner, Problem
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import Batch


def test_a_submodule_under_two_names_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(UserError, match="one Linear is registered twice, as '0' and '2'; register each"):
        check_module(nn.Sequential(layer, nn.Tanh(), layer))


def test_a_nested_double_registration_is_refused():
    inside = nn.Sequential(nn.Linear(2, 2))
    module = nn.ModuleDict({"outer": nn.ModuleList([inside]), "again": inside[0]})
    with pytest.raises(UserError, match="registered twice"):
        check_module(module)


def test_distinct_modules_and_a_shared_parameter_pass():
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    module[2].weight = module[0].weight
    assert check_module(module) is module


@pytest.mark.parametrize("double", [False, True])
def test_the_danger_is_real(double):
    """What the guard prevents: after the call the weights are no Parameters any more (torch 2.13)."""
    layer = nn.Linear(2, 2)
    module = nn.Sequential(layer, layer if double else nn.Linear(2, 2))
    params = {key: leaf.detach().clone() for key, leaf in module.named_parameters()}
    functional_call(module, params, (torch.zeros(1, 2),))
    intact = isinstance(module[0].weight, nn.Parameter) and isinstance(module[1].weight, nn.Parameter)
    if double and intact:
        pytest.skip("this torch no longer corrupts such modules")
    assert intact is not double


class Attention(nn.Module):
    """Fused where torch can; x [batch time feature]."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Linear(4, 4)

    def forward(self, x):
        q = self.queries(x).unsqueeze(1)
        return F.scaled_dot_product_attention(q, q, q)


class Cube(torch.autograd.Function):
    """x^3, whose backward may be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class OnceCube(Cube):
    """The same, whose backward may not."""

    backward = staticmethod(once_differentiable(Cube.backward))


class Cubed(nn.Module):
    def __init__(self, cube):
        super().__init__()
        self.linear, self.cube = nn.Linear(4, 4), cube

    def forward(self, x):
        return torch.tanh(self.cube.apply(self.linear(x)))


class Fit(Problem):
    """A module's regression under SGD; meta: the log rate, a factor of the inputs."""

    def __init__(self, make, second=True):
        with seeded("network"):
            self.module = make().double()
        self.second_derivatives = second

    def init(self, meta, rng):
        return Inner({key: leaf.detach().clone() for key, leaf in self.module.named_parameters()}, {})

    def inner_loss(self, meta, params, batch):
        return F.mse_loss(
            functional_call(self.module, params, (batch.x * meta["factor"],)).flatten(), batch.y
        )

    def update(self, meta, inner, grads):
        return sgd(inner.params, inner.slots, grads, meta["rate"].exp(), 0.0, 0.0)

    def outer_loss(self, meta, params, batch):
        return self.inner_loss({**meta, "factor": 1.0}, params, batch)


def start(name):
    one = {"dtype": torch.float64}
    x = torch.randn(2, 3, 4, generator=generator("x"), **one)
    batches = [Batch(x + shift, x.flatten().sin(), ("batch", shift)) for shift in range(5)]
    steps = 1 if name == "finite difference" else 4
    return {"factor": torch.tensor(0.7, **one), "rate": torch.tensor(-1.0, **one)}, Segment(
        batches[:steps], {steps: batches[4]}
    )


WAYS = {
    "unrolled": Unrolled(UnrolledOptions("unrolled", False)),
    "recomputed": Unrolled(UnrolledOptions("unrolled", True)),
    "truncated": Truncated(TruncatedOptions("truncated", 2)),
    "forward": Forward(ForwardOptions("forward", 4)),
    "finite difference": FiniteDifference(FiniteDifferenceOptions("finite_difference", 1e-4)),
}
SECOND = ["unrolled", "recomputed", "truncated", "forward"]


def estimate(name, problem):
    meta, segment = start(name)
    carry = WAYS[name].init(problem, meta, generator())
    return WAYS[name].estimate(problem, meta, carry, segment, generator())


@pytest.mark.parametrize("name", SECOND)
def test_fused_attention_is_explained(name):
    with pytest.raises(
        UserError, match=r"fused attention .*SDPBackend.MATH.*hypergradient=finite_diff"
    ) as told:
        estimate(name, Fit(Attention))
    assert str(told.value).startswith({"recomputed": "unrolled"}.get(name, name) + ":")
    with sdpa_kernel(SDPBackend.MATH):  # the switch that the message names helps
        grad = estimate(name, Fit(Attention)).grad
    assert all(leaf.isfinite() and leaf != 0 for leaf in grad.values())


def test_fused_attention_is_differentiated_once():
    """The estimators that the message names do run."""
    with sdpa_kernel(SDPBackend.MATH):
        expected = estimate("finite difference", Fit(Attention)).grad
    torch.testing.assert_close(estimate("finite difference", Fit(Attention)).grad, expected)
    assert all(leaf.isfinite() for leaf in estimate("unrolled", Fit(Attention, second=False)).grad.values())


@pytest.mark.parametrize("name", SECOND)
def test_a_function_differentiable_once_is_refused(name):
    with pytest.raises(UserError, match=r"uses OnceCube, whose backward is marked once_differentiable"):
        estimate(name, Fit(lambda: Cubed(OnceCube)))
    assert estimate(name, Fit(lambda: Cubed(Cube))).grad["factor"] != 0
    assert estimate(name, Fit(lambda: Cubed(OnceCube), second=False)).grad["rate"] != 0


def test_what_torch_would_drop_in_silence():
    """Without the refusal: finite numbers, and wrong (torch 2.13)."""
    found = []
    for cube in (Cube, OnceCube):
        x = torch.tensor(2.0, requires_grad=True)
        (slope,) = torch.autograd.grad(cube.apply(x * x), x, create_graph=True)
        found.append(float(torch.autograd.grad(slope, x)[0]))
    assert found == [30 * 2.0**4, 6 * 2.0**4]


@pytest.mark.parametrize("name", SECOND)
def test_a_function_of_meta_alone_is_differentiated_once(name):
    """But for forward mode, which takes the inner loss's gradient by meta before its second derivative."""

    class Direct(Fit):
        cube = OnceCube

        def inner_loss(self, meta, params, batch):
            factor = meta["factor"]
            meta = {**meta, "factor": self.cube.apply(factor) if isinstance(factor, torch.Tensor) else factor}
            return super().inner_loss(meta, params, batch)

    once, twice = Direct(lambda: nn.Linear(4, 4)), Direct(lambda: nn.Linear(4, 4))
    twice.cube = Cube
    if name == "forward":
        with pytest.raises(UserError, match="once_differentiable"):
            estimate(name, once)
    else:
        torch.testing.assert_close(estimate(name, once).grad, estimate(name, twice).grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"), [("unrolled", "inductor")] + [(name, "aot_eager") for name in SECOND]
)
def test_a_compiled_module_is_explained(name, backend):
    def make():
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    problem = Fit(make)
    problem.module = torch.compile(problem.module, backend=backend)
    with pytest.raises(UserError, match=r"compiled module .*set machine.compile=false"):
        estimate(name, problem)


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        (lambda x: torch.cdist(x, x + 1), (1, 3, 4)),
        (lambda x: F.embedding_bag(torch.arange(3)[None], x[0]), (1, 3, 4)),
    ],
)
def test_other_operations_are_named(operation, shape):
    x = torch.randn(shape, generator=generator(), requires_grad=True)

    @second_order("neumann")
    def product():
        (slope,) = torch.autograd.grad(operation(x).pow(2).sum(), x, create_graph=True)
        torch.autograd.grad(slope.sum(), x)

    with pytest.raises(
        UserError, match=r"neumann: torch has no second .*\((_cdist|_embedding_bag)_backward\)"
    ):
        product()


CUDNN = (
    "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not supported for "
    "CuDNN RNNs due to limitations in the CuDNN API. To run double backwards, please disable the CuDNN"
)


def test_cudnn_is_explained():
    """By the words of torch 2.13, as no GPU is here to say them."""
    with (
        pytest.raises(UserError, match=r"cuDNN's recurrent .*cudnn.flags\(enabled=False\)"),
        second_order("x"),
    ):
        raise NotImplementedError(CUDNN)


def test_other_errors_pass():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError) as raised, second_order("unrolled"):
        raise error
    assert raised.value is error
