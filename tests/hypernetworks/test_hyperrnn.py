"""The HyperRNN in both forms against its equations, its start, and what it must reduce to."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from metalearn.hypernetworks.config import HyperRnnOptions
from metalearn.hypernetworks.hyperrnn import HyperRNN, HyperRNNCell, MixedMatrices, ScaledRows
from metalearn.hypernetworks.rnn import RNN, RNNCell
from metalearn.rng import generator
from metalearn.tree import count

INPUTS, UNITS, HYPER, EMBEDDING, BATCH = 3, 5, 4, 2, 2
FORMS = ["scaled", "full"]


def make_cell(form, source="current", inputs=INPUTS, units=UNITS, hyper=HYPER, embedding=EMBEDDING):
    torch.manual_seed(0)
    return HyperRNNCell(inputs, units, HyperRnnOptions(hyper, embedding, form, source)).double()


def randomise(module, deviation=0.5):
    """Move every parameter away from its start."""
    rng = generator("randomise")
    for parameter in module.parameters():
        parameter.data += deviation * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return module


def draw(*shape, key="draw"):
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def make_state(batch=BATCH):
    return tuple(0.5 * draw(batch, units, key=f"state {units}") for units in (UNITS, HYPER))


def weight_of(w, name, z):
    """W(z) as the paper writes it, [units inputs]: <W_z, z> with W_z of three axes, or diag(d) W."""
    weight = w[f"{name}.weight"]
    if f"{name}.weight_d" in w:
        return np.diag(w[f"{name}.weight_d"].T @ z) @ weight.T
    three_axes = weight.reshape(len(weight), EMBEDDING, UNITS).transpose(2, 0, 1)  # units inputs N_z
    return np.einsum("ijk,k->ij", three_axes, z)


def reference_step(w, x, h, hh, source):
    """One example through equations 4 to 8, the generated weights written out in full."""
    both = np.concatenate([x, h])
    new_hh = np.tanh(w["hyper.weight_h"].T @ hh + w["hyper.weight_x"].T @ both + w["hyper.bias"])
    seen = new_hh if source == "current" else hh
    z_h = w["weight_z"][:, 0].T @ seen + w["bias_z"][0]
    z_x = w["weight_z"][:, 1].T @ seen + w["bias_z"][1]
    z_b = w["weight_z"][:, 2].T @ seen
    bias = w["weight_b"].T @ z_b + w["bias"]
    new_h = np.tanh(weight_of(w, "of_hidden", z_h) @ h + weight_of(w, "of_input", z_x) @ x + bias)
    return new_h, new_hh


@pytest.mark.parametrize("source", ["current", "previous"])
@pytest.mark.parametrize("form", FORMS)
def test_one_step_is_the_papers(form, source):
    cell = randomise(make_cell(form, source))
    x, state = draw(BATCH, INPUTS), make_state()
    found = cell(x, state)
    weights = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    for row in range(BATCH):
        expected = reference_step(weights, *(part[row].numpy() for part in (x, *state)), source)
        for part, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(part[row].detach().numpy(), value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_is_its_steps(form):
    cell = randomise(make_cell(form))
    x, state = draw(6, BATCH, INPUTS), make_state()
    outputs, last = cell.scan(x, state)
    for time in range(6):
        state = cell(x[time], state)
        torch.testing.assert_close(outputs[time], state[0])
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize(
    "make", [*(lambda form=form: make_cell(form) for form in FORMS), lambda: RNNCell(3, 5)]
)
def test_symbols_are_one_hot_inputs(make):
    cell = randomise(make().double())
    symbols = torch.randint(INPUTS, (4, BATCH), generator=generator("symbols"))
    one_hot = nn.functional.one_hot(symbols, INPUTS).double()
    scale, state = draw(4, BATCH, 1, key="scale"), make_state()[: len(cell.sizes)]
    torch.testing.assert_close(cell.scan(symbols, state), cell.scan(one_hot, state))
    torch.testing.assert_close(cell.scan(symbols, state, scale), cell.scan(one_hot * scale, state))


class _Scan(nn.Module):
    """`scan` as a forward, which is what functional_call calls."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, state):
        return self.cell.scan(x, state)


def sequence(cell, names):
    """(inputs, starts, parameters) -> outputs and last states, for gradient checks."""

    def function(x, h, hh, *leaves):
        given = {f"cell.{name}": leaf for name, leaf in zip(names, leaves, strict=True)}
        outputs, last = functional_call(_Scan(cell), given, (x, (h, hh)))
        return outputs, *last

    return function


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients_by_central_differences(check, form):
    cell = randomise(make_cell(form), 0.3)
    names, leaves = zip(*cell.named_parameters(), strict=True)
    given = [draw(3, BATCH, INPUTS), *make_state(), *leaves]
    given = [value.detach().clone().requires_grad_() for value in given]
    assert check(sequence(cell, names), given, fast_mode=check is torch.autograd.gradgradcheck)


@pytest.mark.parametrize("form", FORMS)
def test_vmap_over_gradients_equals_the_loop(form):
    cell = make_cell(form)
    names, leaves = zip(*cell.named_parameters(), strict=True)
    many = [
        torch.stack([leaf.detach() + 0.2 * draw(*leaf.shape, key=f"{k}") for k in range(3)])
        for leaf in leaves
    ]
    x, state, function = draw(3, BATCH, INPUTS), make_state(), sequence(cell, names)

    def gradient(*leaves):
        return torch.func.grad(lambda leaves: function(x, *state, *leaves)[0].square().sum())(leaves)

    batched = torch.func.vmap(gradient)(*many)
    for k in range(3):
        for together, one in zip(batched, gradient(*(leaf[k] for leaf in many)), strict=True):
            torch.testing.assert_close(together[k], one)


def embeddings(cell, seen):
    """z_h, z_x, z_b [batch embedding] of a hyper cell's output."""
    step = cell._step()
    return torch.addmm(step.bias_z, seen, step.weight_z).chunk(3, dim=1)


@pytest.mark.parametrize(("embedding", "rtol"), [(4, 0.0), (16, 2e-7)])
def test_every_row_is_scaled_by_a_tenth_at_the_start(embedding, rtol):
    """Exactly (a sum of 16 rounds), for every unit and hyper output (appendix A.2.3)."""
    cell = make_cell("scaled", embedding=embedding).float()
    z_h, z_x, z_b = embeddings(cell, torch.randn(3, HYPER))
    assert torch.equal(z_h, torch.ones(3, embedding))
    for part, z in ((cell.of_hidden, z_h), (cell.of_input, z_x)):
        tenth = part.mix(z, torch.ones(3, UNITS))
        torch.testing.assert_close(tenth, torch.full((3, UNITS), 0.1), rtol=rtol, atol=0.0)
    assert z_b.any()
    assert torch.equal(z_b @ cell.weight_b, torch.zeros(3, UNITS))


@pytest.mark.parametrize("embedding", [1, 2, 7])
def test_first_weights_of_the_full_form_are_orthogonal(embedding):
    """And the matrices they are mixed from differ, at about a fair share of their size."""
    cell = make_cell("full", inputs=9, units=8, embedding=embedding)
    for part in (cell.of_hidden, cell.of_input):
        matrices = part.weight.detach().unflatten(1, (embedding, -1))
        first = matrices.sum(1)
        torch.testing.assert_close(first.t() @ first, torch.eye(8).double(), rtol=0, atol=1e-5)
        for k in range(1, embedding):
            assert (matrices[:, k] - matrices[:, 0]).norm() > 0.5 * matrices[:, 0].norm()
        assert embedding * matrices.norm(dim=(0, 2)).max() < 2 * first.norm()


def test_starts_are_the_rules():
    cell = make_cell("scaled", hyper=64, embedding=16, units=9)
    assert torch.equal(cell.weight_z[:, :2], torch.zeros(64, 2, 16).double())
    assert cell.weight_z[:, 2].std().item() == pytest.approx(0.01, rel=0.1)
    assert torch.equal(cell.bias_z, torch.ones(2, 16).double())
    assert not any(leaf.any() for leaf in (cell.weight_b, cell.bias, cell.hyper.bias))
    for weight in (cell.of_hidden.weight, cell.of_input.weight, cell.hyper.weight_h, cell.hyper.weight_x):
        wide = weight if weight.shape[0] <= weight.shape[1] else weight.t()
        torch.testing.assert_close(wide @ wide.t(), torch.eye(len(wide)).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_hyper_cell_learns_from_the_second_step_on(form):
    """Its weights meet only zeros at the start (sheet 8.2); one update of z and W_bz opens the way."""
    cell = make_cell(form)
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    norms = []
    for _ in range(2):
        optimizer.zero_grad()
        outputs, _ = cell.scan(draw(4, BATCH, INPUTS), make_state())
        (outputs * draw(4, BATCH, UNITS, key="weights")).sum().backward()
        norms.append({name: parameter.grad.norm().item() for name, parameter in cell.named_parameters()})
        optimizer.step()
    assert all((norms[0][name] == 0) == name.startswith("hyper.") for name in norms[0])
    assert all(norms[1][name] > 1e-8 for name in norms[1])


@pytest.mark.parametrize(("form", "alike"), [("scaled", True), ("full", False)])
def test_entries_of_embeddings_stay_alike_where_they_start_alike(form, alike):
    """What the paper's rule means for scaled rows, and why our start of the full form is another."""
    cell = make_cell(form)
    optimizer = torch.optim.Adam(cell.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        outputs, _ = cell.scan(draw(4, BATCH, INPUTS), make_state())
        (outputs * draw(4, BATCH, UNITS, key="weights")).sum().backward()
        optimizer.step()
    z_h, z_x, z_b = embeddings(cell, draw(BATCH, HYPER))
    for z in (z_h, z_x):
        assert not torch.allclose(z, torch.ones_like(z))
        assert torch.allclose(z, z[:, :1].expand_as(z)) == alike
    assert not torch.allclose(z_b, z_b[:, :1].expand_as(z_b))


@pytest.mark.parametrize("form", FORMS)
def test_constant_embeddings_make_an_ordinary_rnn(form):
    cell = randomise(make_cell(form))
    cell.weight_z.data.zero_()
    z_h, z_x, z_b = (z[:1] for z in embeddings(cell, draw(1, HYPER)))
    plain = RNNCell(INPUTS, UNITS).double()
    for target, part, z in ((plain.weight_h, cell.of_hidden, z_h), (plain.weight_x, cell.of_input, z_x)):
        target.data = part.mix(z.expand(len(part.weight), -1), part.weight).detach()
    plain.bias.data = (cell.bias + (z_b @ cell.weight_b)[0]).detach()
    x, (h, hh) = draw(5, BATCH, INPUTS), make_state()
    outputs, last = cell.scan(x, (h, hh))
    expected, expected_last = plain.scan(x, (h,))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(last[:1], expected_last)


def test_the_full_form_starts_as_an_ordinary_rnn():
    x, (h, hh) = draw(5, BATCH, INPUTS), make_state()
    cell = make_cell("full")
    plain = RNNCell(INPUTS, UNITS).double()
    plain.weight_h.data = cell.of_hidden.weight.detach().unflatten(1, (EMBEDDING, -1)).sum(1)
    plain.weight_x.data = cell.of_input.weight.detach().unflatten(1, (EMBEDDING, -1)).sum(1)
    torch.testing.assert_close(cell.scan(x, (h, hh))[0], plain.scan(x, (h,))[0])


def formula(form, inputs, units, hyper, embedding):
    """W_h and W_x and their scales or mixtures, the bias; the hyper cell; W_h* of three z and two biases."""
    weights = units * (inputs + units)
    main = weights + 2 * units * embedding if form == "scaled" else weights * embedding
    small = hyper * (hyper + inputs + units) + hyper
    return main + units * embedding + units + small + embedding * (3 * hyper + 2)


@pytest.mark.parametrize("form", FORMS)
def test_counts_follow_the_equations(form):
    sizes = (50, 1000, 128, 4)
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "normal_", lambda tensor, **_: tensor)  # on meta it loads for seconds
        cell = HyperRNNCell(*sizes[:2], HyperRnnOptions(*sizes[2:], form, "current"))
    assert count(cell.parameters()) == formula(form, *sizes)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_ordinary_rnn_is_torchs(layers, batch_first):
    theirs = nn.RNN(INPUTS, UNITS, layers, batch_first=batch_first).double()
    ours = RNN(INPUTS, UNITS, layers, batch_first).double()
    for layer, cell in enumerate(ours.cells):
        cell.weight_x.data = getattr(theirs, f"weight_ih_l{layer}").data.t().contiguous()
        cell.weight_h.data = getattr(theirs, f"weight_hh_l{layer}").data.t().contiguous()
        cell.bias.data = getattr(theirs, f"bias_ih_l{layer}").data + getattr(theirs, f"bias_hh_l{layer}").data
    x, state = draw(4, 4, INPUTS), draw(layers, 4, UNITS, key="h")
    outputs, (last,) = ours(x, (state,))
    torch.testing.assert_close((outputs, last), theirs(x, state))
    rows = nn.utils.rnn.pack_sequence([draw(n, INPUTS, key=f"{n}") for n in (2, 4, 1)], enforce_sorted=False)
    torch.testing.assert_close(ours(rows)[0].data, theirs(rows)[0].data)
    torch.testing.assert_close(ours(rows)[1][0], theirs(rows)[1])


@pytest.mark.parametrize("form", FORMS)
def test_layers_feed_each_other_and_states_carry_over(form):
    torch.manual_seed(0)
    options = HyperRnnOptions(HYPER, EMBEDDING, form, "current")
    stack = randomise(HyperRNN(INPUTS, UNITS, options, num_layers=2).double())
    x = draw(7, BATCH, INPUTS)
    outputs, state = stack(x)
    assert [tuple(part.shape) for part in state] == [(2, BATCH, UNITS), (2, BATCH, HYPER)]
    zeros = tuple(torch.zeros(BATCH, size).double() for size in (UNITS, HYPER))
    middle, _ = stack.cells[0].scan(x, zeros)
    torch.testing.assert_close(outputs, stack.cells[1].scan(middle, zeros)[0])
    _, carried = stack(x[:3])
    second, last = stack(x[3:], carried)
    torch.testing.assert_close(second, outputs[3:])
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_different_lengths_are_read_as_alone(form):
    torch.manual_seed(0)
    stack = randomise(HyperRNN(INPUTS, UNITS, HyperRnnOptions(HYPER, EMBEDDING, form, "current"), 2).double())
    rows = [draw(length, INPUTS, key=f"{length}") for length in (2, 5, 1)]
    outputs, last = stack(nn.utils.rnn.pack_sequence(rows, enforce_sorted=False))
    padded, _ = nn.utils.rnn.pad_packed_sequence(outputs)
    for index, row in enumerate(rows):
        expected, expected_last = stack(row)
        torch.testing.assert_close(padded[: len(row), index], expected)
        torch.testing.assert_close(tuple(part[:, index] for part in last), expected_last)


@pytest.mark.parametrize(("form", "kind"), [("scaled", ScaledRows), ("full", MixedMatrices)])
def test_runs_under_autocast(form, kind):
    """In bf16, near full precision."""
    cell = randomise(make_cell(form)).float()
    assert isinstance(cell.of_hidden, kind)
    x, state = draw(4, BATCH, INPUTS).float(), tuple(part.float() for part in make_state())
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = cell.scan(x, state)
    torch.testing.assert_close(rough.float(), cell.scan(x, state)[0], rtol=0.1, atol=0.05)
