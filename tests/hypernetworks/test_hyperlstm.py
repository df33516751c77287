"""The HyperLSTM against its equations, its start, and what it must reduce to."""

import itertools

import numpy as np
import pytest
import torch
from torch.func import functional_call

from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.hyperlstm import HyperLSTM, HyperLSTMCell
from metalearn.hypernetworks.lstm import LSTMCell
from metalearn.rng import generator

INPUTS, UNITS, HYPER, EMBEDDING, BATCH = 3, 5, 4, 2, 2


def make_cell(
    layer_norm=False, hyper_norm=False, forget_bias=1.0, source="current", keep=1.0, initial="paper"
):
    options = CellOptions(layer_norm, forget_bias, keep, initial)
    torch.manual_seed(0)
    return HyperLSTMCell(
        INPUTS, UNITS, options, HyperOptions(HYPER, EMBEDDING, hyper_norm, keep, source)
    ).double()


def randomise(module, deviation=0.5):
    """Move every parameter away from its start."""
    rng = generator("randomise")
    for parameter in module.parameters():
        parameter.data += deviation * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return module


def draw(*shape, key="draw"):
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def make_state(batch=BATCH):
    return tuple(
        0.5 * draw(batch, units, key=f"state {i}") for i, units in enumerate((UNITS, UNITS, HYPER, HYPER))
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, gain, shift):
    """[P] A.2; biased variance, epsilon 1e-3 inside the root [C]."""
    return gain * (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-3) + shift


def gate_block(weight, gate, units):
    """W^y in R^(units x inputs) of one gate, as the paper writes it."""
    return weight[:, gate * units : (gate + 1) * units].T


def finish(pre, norms, cell, forget_bias):
    """Gates before their sigmoids to (h, c)."""
    if norms:
        pre = [layer_norm(pre[y], norms["gate_gain"][y, 0], norms["gate_shift"][y, 0]) for y in range(4)]
    i, g, f, o = pre
    cell = sigmoid(f + forget_bias) * cell + sigmoid(i) * np.tanh(g)
    seen = layer_norm(cell, norms["cell_gain"], norms["cell_shift"]) if norms else cell
    return sigmoid(o) * np.tanh(seen), cell


def reference_step(w, x, h, c, hh, hc, forget_bias, source):
    """One example through equations 10-13, the scaled weight matrices written out in full."""

    def norms(prefix):
        names = ("gate_gain", "gate_shift", "cell_gain", "cell_shift")
        return {name: w[prefix + name] for name in names} if prefix + names[0] in w else None

    both = np.concatenate([x, h])
    pre = [
        gate_block(w["hyper.weight_h"], y, HYPER) @ hh
        + gate_block(w["hyper.weight_x"], y, HYPER) @ both
        + w["hyper.bias"][y * HYPER : (y + 1) * HYPER]
        for y in range(4)
    ]
    new_hh, new_hc = finish(pre, norms("hyper.norms."), hc, forget_bias)
    seen = new_hh if source == "current" else hh
    pre = []
    for y in range(4):
        z_h = w["weight_z"][:, y].T @ seen + w["bias_z"][y]
        z_x = w["weight_z"][:, 4 + y].T @ seen + w["bias_z"][4 + y]
        z_b = w["weight_z"][:, 8 + y].T @ seen
        d_h, d_x = w["weight_d"][y].T @ z_h, w["weight_d"][4 + y].T @ z_x
        bias = w["weight_d"][8 + y].T @ z_b + w["bias"][y * UNITS : (y + 1) * UNITS]
        scaled_h = np.diag(d_h) @ gate_block(w["weight_h"], y, UNITS)
        scaled_x = np.diag(d_x) @ gate_block(w["weight_x"], y, UNITS)
        pre.append(scaled_h @ h + scaled_x @ x + bias)
    new_h, new_c = finish(pre, norms("norms."), c, forget_bias)
    return new_h, new_c, new_hh, new_hc


@pytest.mark.parametrize("source", ["current", "previous"])
@pytest.mark.parametrize(("norm", "hyper_norm"), itertools.product([False, True], repeat=2))
def test_one_step_is_the_papers(norm, hyper_norm, source):
    cell = randomise(make_cell(norm, hyper_norm, 0.7, source))
    x, state = draw(BATCH, INPUTS), make_state()
    found = cell(x, state)
    weights = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    for row in range(BATCH):
        expected = reference_step(weights, *(part[row].numpy() for part in (x, *state)), 0.7, source)
        for part, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(part[row].detach().numpy(), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_a_sequence_is_its_steps(norm):
    cell = randomise(make_cell(norm, norm))
    x, state = draw(6, BATCH, INPUTS), make_state()
    outputs, last = cell.scan(x, state)
    for time in range(6):
        state = cell(x[time], state)
        torch.testing.assert_close(outputs[time], state[0])
    torch.testing.assert_close(last, state)


def test_symbols_are_one_hot_inputs():
    cell = randomise(make_cell())
    symbols = torch.randint(INPUTS, (4, BATCH), generator=generator("symbols"))
    one_hot = torch.nn.functional.one_hot(symbols, INPUTS).double()
    scale = draw(4, BATCH, 1, key="scale")
    torch.testing.assert_close(cell.scan(symbols, make_state()), cell.scan(one_hot, make_state()))
    torch.testing.assert_close(
        cell.scan(symbols, make_state(), scale), cell.scan(one_hot * scale, make_state())
    )


def sequence_loss(cell, names):
    """(inputs, starts, parameters) -> outputs, for gradient checks."""

    def function(x, h, c, hh, hc, *leaves):
        given = (x, (h, c, hh, hc))
        outputs, last = functional_call(
            _Scan(cell), {f"cell.{n}": v for n, v in zip(names, leaves, strict=True)}, given
        )
        return outputs, *last

    return function


class _Scan(torch.nn.Module):
    """`scan` as a forward, which is what functional_call calls."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, state):
        return self.cell.scan(x, state)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_by_central_differences(check, norm):
    cell = randomise(make_cell(norm, norm), 0.3)
    names, leaves = zip(*cell.named_parameters(), strict=True)
    given = [draw(3, BATCH, INPUTS), *make_state(), *leaves]
    given = [value.detach().clone().requires_grad_() for value in given]
    assert check(sequence_loss(cell, names), given, fast_mode=check is torch.autograd.gradgradcheck)


@pytest.mark.parametrize(("embedding", "rtol"), [(4, 0.0), (16, 2e-7)])
def test_every_row_is_scaled_by_a_tenth_at_the_start(embedding, rtol):
    """Exactly (a sum of 16 rounds), for every unit and state; and the generated bias is 0 (sheet 3.2)."""
    torch.manual_seed(0)
    cell = HyperLSTMCell(
        7, 9, CellOptions(True, 1.0, 1.0, "paper"), HyperOptions(6, embedding, True, 1.0, "current")
    )
    step, _ = cell._step()
    of_hidden, of_input, of_bias = cell._generate(step, torch.randn(3, 6))
    tenth = torch.full((4, 3, 9), 0.1)
    torch.testing.assert_close(of_hidden, tenth, rtol=rtol, atol=0.0)
    torch.testing.assert_close(of_input, tenth, rtol=rtol, atol=0.0)
    assert torch.equal(of_bias, torch.zeros(4, 3, 9))


def test_spread_scales_by_a_tenth_too():
    cell = make_cell(initial="spread")
    step, _ = cell._step()
    of_hidden, of_input, of_bias = cell._generate(step, draw(3, HYPER))
    torch.testing.assert_close(of_hidden, torch.full_like(of_hidden, 0.1))
    torch.testing.assert_close(of_input, torch.full_like(of_input, 0.1))
    assert torch.equal(of_bias, torch.zeros_like(of_bias))


@pytest.mark.parametrize(("initial", "stays"), [("paper", True), ("code", True), ("spread", False)])
def test_entries_of_an_embedding_stay_equal_from_the_papers_start(initial, stays):
    """Equal weights have equal gradients: such an embedding is one number, whatever its size."""
    cell = make_cell(initial=initial)
    optimizer = torch.optim.Adam(cell.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        outputs, _ = cell.scan(draw(4, BATCH, INPUTS), make_state())
        (outputs * draw(4, BATCH, UNITS, key="weights")).sum().backward()
        optimizer.step()
    scaled = cell.weight_z[:, :8]
    assert scaled.abs().max() > 0.01
    assert torch.allclose(scaled, scaled[..., :1].expand_as(scaled), rtol=1e-9, atol=1e-9) == stays


def test_hyper_cell_learns_from_the_second_step_on():
    """Its weights meet only zeros at the start (sheet 8.2); one update of z and d opens the way."""
    cell = make_cell()
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        outputs, _ = cell.scan(draw(4, BATCH, INPUTS), make_state())
        (outputs * draw(4, BATCH, UNITS, key="weights")).sum().backward()
        norms.append({name: parameter.grad.norm().item() for name, parameter in cell.named_parameters()})
        optimizer.step()
    assert all(norms[0][name] == 0 for name in norms[0] if name.startswith("hyper."))
    assert all(
        norms[0][name] > 0 for name in ("weight_h", "weight_x", "bias", "weight_z", "bias_z", "weight_d")
    )
    assert all(norms[1][name] > 1e-8 for name in norms[1] if name.startswith("hyper."))


def test_generated_bias_embedding_starts_small():
    torch.manual_seed(0)
    cell = HyperLSTMCell(
        7, 9, CellOptions(False, 1.0, 1.0, "paper"), HyperOptions(64, 16, False, 1.0, "current")
    )
    assert torch.equal(cell.weight_z[:, :8], torch.zeros(64, 8, 16))
    assert cell.weight_z[:, 8:].std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(cell.bias_z, torch.ones(8, 16))


@pytest.mark.parametrize("norm", [False, True])
def test_constant_scaling_is_an_lstm_with_scaled_weights(norm):
    cell = randomise(make_cell(norm, norm))
    cell.weight_z.data.zero_()
    step, _ = cell._step()
    of_hidden, of_input, _ = (part[:, 0] for part in cell._generate(step, draw(1, HYPER)))
    plain = LSTMCell(INPUTS, UNITS, cell.options).double()
    plain.weight_h.data = cell.weight_h.data * of_hidden.reshape(-1)
    plain.weight_x.data = cell.weight_x.data * of_input.reshape(-1)
    plain.bias.data = cell.bias.data
    if norm:
        plain.norms = cell.norms
    x, state = draw(5, BATCH, INPUTS), make_state()
    outputs, last = cell.scan(x, state)
    expected, expected_last = plain.scan(x, state[:2])
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(last[:2], expected_last)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_feed_each_other_and_states_carry_over(batch_first):
    options = CellOptions(True, 1.0, 1.0, "paper")
    hyper = HyperOptions(HYPER, EMBEDDING, True, 1.0, "current")
    torch.manual_seed(0)
    stack = randomise(
        HyperLSTM(INPUTS, UNITS, options, hyper, num_layers=2, batch_first=batch_first).double()
    )
    x = draw(7, BATCH, INPUTS)
    outputs, state = stack(x.transpose(0, 1) if batch_first else x)
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    assert [tuple(part.shape) for part in state] == [
        (2, BATCH, size) for size in (UNITS, UNITS, HYPER, HYPER)
    ]

    zeros = [tuple(torch.zeros(BATCH, size).double() for size in cell.sizes) for cell in stack.cells]
    middle, _ = stack.cells[0].scan(x, zeros[0])
    expected, _ = stack.cells[1].scan(middle, zeros[1])
    torch.testing.assert_close(outputs, expected)

    scale = draw(7, BATCH, 1, key="scale")
    swapped = (x.transpose(0, 1), None, scale.transpose(0, 1)) if batch_first else (x, None, scale)
    torch.testing.assert_close(
        stack(*swapped)[1], stack(x * scale if not batch_first else swapped[0] * swapped[2])[1]
    )

    halves = [x[:3].transpose(0, 1), x[3:].transpose(0, 1)] if batch_first else [x[:3], x[3:]]
    _, carried = stack(halves[0])
    second, last = stack(halves[1], carried)
    torch.testing.assert_close(second.transpose(0, 1) if batch_first else second, outputs[3:])
    torch.testing.assert_close(last, state)


def test_vmap_over_gradients_equals_the_loop():
    cell = make_cell(True, True)
    names, leaves = zip(*cell.named_parameters(), strict=True)
    stacked = [
        torch.stack([leaf.detach() + 0.2 * draw(*leaf.shape, key=f"{k}") for k in range(3)])
        for leaf in leaves
    ]
    x, state, function = draw(3, BATCH, INPUTS), make_state(), sequence_loss(cell, names)

    def gradient(*leaves):
        return torch.func.grad(lambda leaves: function(x, *state, *leaves)[0].square().sum())(leaves)

    batched = torch.func.vmap(gradient)(*stacked)
    for k in range(3):
        for many, one in zip(batched, gradient(*(leaf[k] for leaf in stacked)), strict=True):
            torch.testing.assert_close(many[k], one)


def test_recurrent_dropout_masks_the_candidates_only():
    """With everything dropped nothing is ever written; in evaluation nothing is dropped."""
    cell = randomise(make_cell(keep=1e-9))
    zeros = tuple(torch.zeros_like(part) for part in make_state())
    outputs, last = cell.scan(draw(4, BATCH, INPUTS), zeros)
    assert not outputs.any()
    assert not last[1].any()
    whole, _ = randomise(make_cell()).eval().scan(draw(4, BATCH, INPUTS), zeros)
    evaluated, _ = cell.eval().scan(draw(4, BATCH, INPUTS), zeros)
    torch.testing.assert_close(evaluated, whole)
    assert whole.all()


def test_runs_under_autocast():
    """In bf16, near full precision."""
    cell = randomise(make_cell(True, True)).float()
    x, state = draw(4, BATCH, INPUTS).float(), tuple(part.float() for part in make_state())
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = cell.scan(x, state)
    torch.testing.assert_close(rough.float(), cell.scan(x, state)[0], rtol=0.1, atol=0.05)
