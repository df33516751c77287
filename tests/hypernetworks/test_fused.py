"""The fused forms of LSTM and HyperLSTM against the plain ones, which equations and differences judge."""

import itertools

import pytest
import torch

from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.fused import kernel, product
from metalearn.hypernetworks.fused.blocks import EagerBlocks
from metalearn.hypernetworks.fused.kernel import CompiledBlocks, blocks_for
from metalearn.hypernetworks.hyperlstm import HyperLSTM, HyperLSTMCell
from metalearn.hypernetworks.lstm import LSTM, LSTMCell
from metalearn.kernels import Built, build
from metalearn.registry import UserError
from metalearn.rng import generator, seeded

INPUTS, HYPER, EMBEDDING, BATCH, TIMES = 3, 4, 2, 3, 5


@pytest.fixture(params=["compiled", "eager"])
def blocks(request, monkeypatch):
    """Both ways to the pointwise parts."""
    if request.param == "eager":
        monkeypatch.setattr(kernel, "build", lambda *_: Built(None, "a test"))
    elif not build(torch.float64, kernel.SOURCE).library:
        pytest.skip(build(torch.float64, kernel.SOURCE).reason)
    kinds = {"compiled": CompiledBlocks, "eager": EagerBlocks}
    assert isinstance(blocks_for(torch.zeros(1, dtype=torch.float64)), kinds[request.param])


def draw(*shape, key="draw"):
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def randomise(module, deviation=0.5):
    rng = generator("randomise")
    for parameter in module.parameters():
        parameter.data += deviation * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return module


def make_lstm(norm=False, keep=1.0, units=5):
    with seeded("cell"):
        return randomise(LSTMCell(INPUTS, units, CellOptions(norm, 0.7, keep, "paper")).double())


def make_hyper(norm=False, hyper_norm=False, source="current", keep=1.0, units=5):
    hyper = HyperOptions(HYPER, EMBEDDING, hyper_norm, 0.5 + keep / 2, source)
    with seeded("cell"):
        cell = HyperLSTMCell(INPUTS, units, CellOptions(norm, 0.7, keep, "paper"), hyper)
    return randomise(cell.double())


def make_state(cell):
    return tuple(0.5 * draw(BATCH, units, key=f"state {i}") for i, units in enumerate(cell.sizes))


def make_present():
    """Rows of all lengths: one whole, one that ends, one that is never there."""
    return (torch.arange(TIMES)[:, None] < torch.tensor([TIMES, 2, 0])).unsqueeze(2)


def everything(cell, fused, x, scale=None, present=None):
    """Outputs, last states, and a loss's gradient by each parameter, the starts and inputs of numbers."""
    state = tuple(part.requires_grad_() for part in make_state(cell))
    leaves = [*cell.parameters(), *state]
    if x.is_floating_point():
        x = x.clone().requires_grad_()
        leaves.append(x)
    with seeded("masks"):
        outputs, last = cell.scan(x, state, scale, present, fused)
    found = outputs, *last
    assert ("Scan" in type(outputs.grad_fn).__name__) == fused
    loss = sum((part * draw(*part.shape, key=f"loss {i}")).sum() for i, part in enumerate(found))
    return *(part.detach() for part in found), *torch.autograd.grad(loss, leaves)


def assert_same(cell, *given, **named):
    plain, fused = (everything(cell, form, *given, **named) for form in (False, True))
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)


def make_inputs(kind):
    """Symbols with dropout's scale, or numbers without."""
    if kind == "numbers":
        return draw(TIMES, BATCH, INPUTS), None
    symbols = torch.randint(INPUTS, (TIMES, BATCH), generator=generator("symbols"))
    return symbols, draw(TIMES, BATCH, 1, key="scale")


INPUT_KINDS = pytest.mark.parametrize("kind", ["numbers", "symbols"])
KEEPS = pytest.mark.parametrize("keep", [1.0, 0.6])
ENDS = pytest.mark.parametrize("ends", [False, True])


@INPUT_KINDS
@KEEPS
@ENDS
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.usefixtures("blocks")
def test_lstm_is_the_plain_one(norm, ends, keep, kind):
    x, scale = make_inputs(kind)
    assert_same(make_lstm(norm, keep), x, scale, make_present() if ends else None)


@INPUT_KINDS
@KEEPS
@ENDS
@pytest.mark.parametrize("source", ["current", "previous"])
@pytest.mark.parametrize(("norm", "hyper_norm"), itertools.product([False, True], repeat=2))
@pytest.mark.usefixtures("blocks")
def test_hyperlstm_is_the_plain_one(norm, hyper_norm, source, ends, keep, kind):
    x, scale = make_inputs(kind)
    cell = make_hyper(norm, hyper_norm, source, keep)
    assert_same(cell, x, scale, make_present() if ends else None)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.usefixtures("blocks")
def test_rows_longer_than_a_vector(norm):
    x, _ = make_inputs("numbers")
    assert_same(make_lstm(norm, 0.6, units=37), x)
    assert_same(make_hyper(norm, norm, "current", 0.6, units=37), x)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.usefixtures("blocks")
def test_saturated_gates_stay_finite(norm):
    """exp of what a double cannot hold; and what is no number is not hidden."""
    cell, (x, _) = make_hyper(norm, norm), make_inputs("numbers")
    assert_same(cell, 1e4 * x)
    x[1, 0, 0] = float("nan")
    outputs, _ = cell.scan(x, make_state(cell), fused=True)
    assert outputs[1:, 0].isnan().all()
    assert outputs[:, 1:].isfinite().all()


@pytest.fixture(params=[False, True])
def packed(request, monkeypatch):
    """Weights as they are, or laid out as large ones are."""
    if request.param:
        monkeypatch.setattr(product, "LARGE", 1)
        monkeypatch.setattr(product, "MANY", 1)
    found = product.Product(torch.zeros(2, 3), rows=1, times=TIMES)
    if (found.packed is not None) != request.param:
        pytest.skip("no oneDNN here")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("make", [make_lstm, make_hyper])
@pytest.mark.usefixtures("blocks", "packed")
def test_single_precision_is_near(make, norm):
    cell, (x, _) = make(norm, units=37), make_inputs("numbers")
    exact = everything(cell, False, x)
    cell.float()
    state = tuple(part.float().requires_grad_() for part in make_state(cell))
    outputs, last = cell.scan(x.float(), state, fused=True)
    found = outputs, *last
    loss = sum((part * draw(*part.shape, key=f"loss {i}").float()).sum() for i, part in enumerate(found))
    grads = torch.autograd.grad(loss, [*cell.parameters(), *state])
    for rough, fine in zip((*found, *grads), exact[:-1], strict=True):
        error = (rough.double() - fine).norm() / fine.norm()
        assert error < 2e-5


def make_stack(kind):
    options = CellOptions(True, 1.0, 0.8, "paper")
    with seeded("stack"):
        if kind == "lstm":
            return LSTM(INPUTS, 6, options, num_layers=2).double()
        hyper = HyperOptions(HYPER, EMBEDDING, True, 0.9, "current")
        return HyperLSTM(INPUTS, 6, options, hyper, num_layers=2).double()


@pytest.mark.parametrize("kind", ["lstm", "hyperlstm"])
def test_stacks_pass_the_switch_on_and_draw_the_same_masks(kind):
    stack, x = randomise(make_stack(kind)), draw(TIMES, BATCH, INPUTS)
    found = {}
    for fused in (False, True):
        stack.fused = fused
        with seeded("masks"):
            outputs, state = stack(x)
            after = torch.rand(())
        loss = outputs.square().sum() + sum(part.sum() for part in state)
        found[fused] = outputs, *state, after, *torch.autograd.grad(loss, list(stack.parameters()))
    torch.testing.assert_close(found[True], found[False], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [make_lstm, make_hyper])
def test_second_derivative_is_refused(make):
    cell, (x, _) = make(), make_inputs("numbers")
    outputs, _ = cell.scan(x.requires_grad_(), make_state(cell), fused=True)
    with pytest.raises(UserError, match="no second derivative"):
        torch.autograd.grad(outputs.sum(), x, create_graph=True)


@pytest.mark.parametrize("make", [make_lstm, make_hyper])
def test_second_pass_over_used_memory_is_refused(make):
    cell, (x, _) = make(), make_inputs("numbers")
    outputs, _ = cell.scan(x.requires_grad_(), make_state(cell), fused=True)
    outputs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


@pytest.mark.parametrize("make", [make_lstm, make_hyper])
def test_autocast_takes_the_plain_form(make):
    cell, (x, _) = make().float(), make_inputs("numbers")
    state = tuple(part.float() for part in make_state(cell))
    found = []
    for fused in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _ = cell.scan(x.float(), state, fused=fused)
        found.append((outputs, *torch.autograd.grad(outputs.float().square().sum(), list(cell.parameters()))))
    torch.testing.assert_close(found[1], found[0], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("make", [make_lstm, make_hyper])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.usefixtures("blocks")
def test_frozen_weights_and_no_gradient(make, norm):
    """What needs no gradient gets none; without gradients the outputs are the same."""
    cell, (x, _) = make(norm), make_inputs("numbers")
    plain, last = cell.scan(x, make_state(cell))
    with torch.no_grad():
        torch.testing.assert_close(cell.scan(x, make_state(cell), fused=True), (plain, last))
        present = make_present()
        expected = cell.scan(x, make_state(cell), present=present)
        torch.testing.assert_close(cell.scan(x, make_state(cell), None, present, True), expected)
    cell.requires_grad_(False)
    cell.bias.requires_grad_()
    found = [
        torch.autograd.grad(cell.scan(x, make_state(cell), fused=form)[0].sum(), cell.bias)
        for form in (False, True)
    ]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("make", [make_lstm, make_hyper])
@pytest.mark.parametrize("norm", [False, True])
def test_keeps_less_memory_than_the_plain_form(make, norm):
    cell = make(norm, units=64)
    x, state = torch.randint(INPUTS, (20, BATCH)), make_state(make(norm, units=64))
    kept = {}
    for fused in (False, True):
        sizes = {}

        def pack(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs, _ = cell.scan(x, state, fused=fused)
        kept[fused] = sum(sizes.values())
        del outputs
    assert kept[True] < kept[False]
