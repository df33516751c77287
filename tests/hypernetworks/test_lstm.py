"""The ordinary LSTM against torch's, and the start of all cells."""

import pytest
import torch
from torch import nn

from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.hyperlstm import HyperLSTMCell
from metalearn.hypernetworks.lstm import LSTM, LSTMCell
from metalearn.rng import generator, seeded

TORCH_ORDER = (0, 2, 1, 3)  # torch keeps i, f, g, o


def draw(*shape, key="draw"):
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def copy_from_torch(ours, theirs):
    """Weights of torch.nn.LSTM, turned over and with gates in our order."""

    def take(tensor):
        return torch.cat([tensor.chunk(4)[gate] for gate in TORCH_ORDER])

    for layer, cell in enumerate(ours.cells):
        cell.weight_x.data = take(getattr(theirs, f"weight_ih_l{layer}").data).t().contiguous()
        cell.weight_h.data = take(getattr(theirs, f"weight_hh_l{layer}").data).t().contiguous()
        biases = getattr(theirs, f"bias_ih_l{layer}").data + getattr(theirs, f"bias_hh_l{layer}").data
        cell.bias.data = take(biases)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_torch(layers, batch_first):
    theirs = nn.LSTM(3, 5, layers, batch_first=batch_first).double()
    ours = LSTM(3, 5, CellOptions(False, 0.0, 1.0, "paper"), layers, batch_first).double()
    copy_from_torch(ours, theirs)
    x = draw(4, 6, 3)
    batch = 4 if batch_first else 6
    state = (draw(layers, batch, 5, key="h"), draw(layers, batch, 5, key="c"))
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = ours(mine, state), theirs(other, state)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours(x), theirs(x))
    found[0].square().sum().backward()
    expected[0].square().sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)
    for layer, cell in enumerate(ours.cells):
        grad = getattr(theirs, f"weight_hh_l{layer}").grad
        grad = torch.cat([grad.chunk(4)[gate] for gate in TORCH_ORDER]).t()
        torch.testing.assert_close(cell.weight_h.grad, grad)


def test_forget_bias_is_a_bias_of_the_forget_gate():
    biased, plain = (LSTMCell(3, 5, CellOptions(False, value, 1.0, "paper")).double() for value in (1.5, 0.0))
    plain.load_state_dict(biased.state_dict())
    plain.bias.data[10:15] += 1.5
    x, state = draw(4, 2, 3), (draw(2, 5, key="h"), draw(2, 5, key="c"))
    torch.testing.assert_close(biased.scan(x, state), plain.scan(x, state))


def test_layer_norm_is_torchs_gate_by_gate():
    cell = LSTMCell(3, 5, CellOptions(True, 0.0, 1.0, "paper")).double()
    for index, parameter in enumerate(cell.norms.parameters()):
        parameter.data += 0.3 * draw(*parameter.shape, key=f"{index}")
    cell.bias.data = draw(20, key="bias")
    x, h, c = draw(2, 3), draw(2, 5, key="h"), draw(2, 5, key="c")
    gates = (x @ cell.weight_x + h @ cell.weight_h + cell.bias).chunk(4, 1)
    norms = cell.norms
    i, g, f, o = (
        nn.functional.layer_norm(gate, (5,), norms.gate_gain[k, 0], norms.gate_shift[k, 0], 1e-3)
        for k, gate in enumerate(gates)
    )
    new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    seen = nn.functional.layer_norm(new, (5,), norms.cell_gain, norms.cell_shift, 1e-3)
    torch.testing.assert_close(cell(x, (h, c)), (o.sigmoid() * seen.tanh(), new))


def blocks(weight):
    return weight.detach().chunk(4, dim=1)


def is_orthonormal(block):
    wide = block if block.shape[0] <= block.shape[1] else block.t()
    return torch.allclose(wide @ wide.t(), torch.eye(len(wide)), atol=1e-5)


def start(initial):
    torch.manual_seed(0)
    options, hyper = CellOptions(True, 1.0, 1.0, initial), HyperOptions(32, 4, True, 1.0, "current")
    return HyperLSTMCell(50, 64, options, hyper)


def test_start_of_the_paper_is_orthogonal_throughout():
    cell = start("paper")
    weights = [cell.weight_h, cell.weight_x, cell.hyper.weight_h, cell.hyper.weight_x]
    assert all(is_orthonormal(block) for weight in weights for block in blocks(weight))
    assert not torch.allclose(blocks(cell.weight_h)[0], blocks(cell.weight_h)[1])
    assert not cell.bias.any()
    assert not cell.hyper.bias.any()


def test_start_of_the_code_is_orthogonal_in_recurrent_weights_and_glorot_in_others():
    cell = start("code")
    assert all(
        is_orthonormal(block) for weight in (cell.weight_h, cell.hyper.weight_h) for block in blocks(weight)
    )
    for weight, limit in [
        (cell.weight_x, (6 / (50 + 4 * 64)) ** 0.5),
        (cell.hyper.weight_x, (6 / (50 + 64 + 4 * 32)) ** 0.5),
    ]:
        assert not is_orthonormal(blocks(weight)[0])
        assert 0.95 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05)


def test_dropout_is_a_function_of_its_key():
    stack = LSTM(3, 5, CellOptions(True, 1.0, 0.5, "paper"))
    x = draw(4, 6, 3).float()

    def run(*key):
        with seeded(*key):
            return stack(x)[0]

    assert torch.equal(run("a"), run("a"))
    assert not torch.equal(run("a"), run("b"))
