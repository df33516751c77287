"""Recurrent stacks are called as torch.nn.LSTM is: lengths, packing, layers, states, export."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from metalearn.hypernetworks.config import CellOptions, HyperOptions
from metalearn.hypernetworks.hyperlstm import HyperLSTM
from metalearn.hypernetworks.lstm import LSTM
from metalearn.hypernetworks.sequences import presence
from metalearn.registry import UserError
from metalearn.rng import generator, seeded

TORCH_ORDER = (0, 2, 1, 3)  # torch keeps i, f, g, o
LENGTHS = (3, 6, 1, 5)
INPUTS, UNITS = 3, 5


def draw(*shape, key="draw"):
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def make_lstm(layers=2, batch_first=False, dropout=0.0, norm=False, inputs=INPUTS):
    torch.manual_seed(0)
    return LSTM(inputs, UNITS, CellOptions(norm, 0.0, 1.0, "paper"), layers, batch_first, dropout).double()


def make_hyperlstm(layers=2, batch_first=False, dropout=0.0):
    torch.manual_seed(0)
    cell, hyper = CellOptions(True, 1.0, 1.0, "paper"), HyperOptions(4, 2, True, 1.0, "current")
    return HyperLSTM(INPUTS, UNITS, cell, hyper, layers, batch_first, dropout).double()


STACKS = [make_lstm, make_hyperlstm]


@pytest.fixture(params=[False, True])
def pair(request):
    """A torch.nn.LSTM of two layers and ours with its weights."""
    theirs = nn.LSTM(INPUTS, UNITS, 2, batch_first=request.param).double()
    ours = make_lstm(batch_first=request.param)
    for layer, cell in enumerate(ours.cells):
        leaves = [getattr(theirs, f"{name}_l{layer}").data for name in ("weight_ih", "weight_hh", "bias_ih")]
        leaves[2] = leaves[2] + getattr(theirs, f"bias_hh_l{layer}").data
        turned = [torch.cat([leaf.chunk(4)[gate] for gate in TORCH_ORDER]).t() for leaf in leaves]
        cell.weight_x.data, cell.weight_h.data = (part.contiguous() for part in turned[:2])
        cell.bias.data = turned[2]
    return theirs, ours


def make_state(layers=2, batch=4):
    return draw(layers, batch, UNITS, key="h"), draw(layers, batch, UNITS, key="c")


def rows():
    return [draw(length, INPUTS, key=f"row {length}") for length in LENGTHS]


def check_packed(found, expected):
    assert isinstance(found[0], PackedSequence)
    for mine, other in zip(found[0], expected[0], strict=True):
        assert (mine is None) == (other is None)
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("state", [None, make_state()])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences_are_read_as_torch_does(pair, enforce_sorted, state):
    theirs, ours = pair
    given = sorted(rows(), key=len, reverse=True) if enforce_sorted else rows()
    packed = pack_sequence(given, enforce_sorted=enforce_sorted)
    check_packed(ours(packed, state), theirs(packed, state))


def test_gradients_through_packed_sequences_are_torchs(pair):
    theirs, ours = pair
    grads = []
    for stack in (theirs, ours):
        given, state = [row.requires_grad_() for row in rows()], tuple(part.clone() for part in make_state())
        outputs, last = stack(pack_sequence(given, enforce_sorted=False), state)
        (outputs.data.square().sum() + last[1].square().sum()).backward()
        grads.append([row.grad for row in given])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("make", STACKS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_of_different_lengths_are_read_as_alone(make, batch_first):
    """Outputs after a row's end are 0, its last state is that at its end, whatever fills the row up."""
    stack = make(batch_first=batch_first)
    padded = nn.utils.rnn.pad_sequence(rows(), padding_value=7.0)
    present = presence(torch.tensor(LENGTHS), 6)
    given = [padded.transpose(0, 1), present.transpose(0, 1)] if batch_first else [padded, present]
    outputs, last = stack(given[0], present=given[1])
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    for index, (row, length) in enumerate(zip(rows(), LENGTHS, strict=True)):
        expected, expected_last = stack(row)  # without a batch
        torch.testing.assert_close(outputs[:length, index], expected)
        assert not outputs[length:, index].any()
        torch.testing.assert_close(tuple(part[:, index] for part in last), expected_last)


@pytest.mark.parametrize("make", STACKS)
def test_packed_and_present_agree(make):
    stack = make()
    packed, last = stack(pack_sequence(rows(), enforce_sorted=False))
    padded = nn.utils.rnn.pad_sequence(rows())
    outputs, expected = stack(padded, present=presence(torch.tensor(LENGTHS), 6))
    torch.testing.assert_close(pad_packed_sequence(packed)[0], outputs)
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_needs_no_batch(batch_first):
    theirs, ours = nn.LSTM(INPUTS, UNITS, 2, batch_first=batch_first), make_lstm(batch_first=batch_first)
    x, state = rows()[1], tuple(part[:, 0] for part in make_state())
    found, expected = ours(x, state), theirs.double()(x, state)
    assert [found[0].shape, *(part.shape for part in found[1])] == [
        expected[0].shape,
        *(part.shape for part in expected[1]),
    ]
    batched, last = ours(x[None] if batch_first else x[:, None], tuple(part[:, None] for part in state))
    torch.testing.assert_close(
        found, (batched.squeeze(0 if batch_first else 1), tuple(part[:, 0] for part in last))
    )


def test_symbols_may_be_packed_or_alone():
    """They are one-hot inputs: int64 without a dimension of features."""
    stack = make_lstm(inputs=7)
    texts = [torch.randint(7, (length,), generator=generator("text", length)) for length in LENGTHS]
    packed, last = stack(pack_sequence(texts, enforce_sorted=False))
    one_hot = [nn.functional.one_hot(text, 7).double() for text in texts]
    check_packed((packed, last), stack(pack_sequence(one_hot, enforce_sorted=False)))
    torch.testing.assert_close(stack(texts[1]), stack(one_hot[1]))


def test_a_packed_sequence_has_its_own_lengths():
    packed = pack_sequence(rows(), enforce_sorted=False)
    with pytest.raises(UserError, match="a PackedSequence knows where its rows end"):
        make_lstm()(packed, present=presence(torch.tensor(LENGTHS), 6))


@pytest.mark.parametrize("lengths", [(0, 3), (2, 7)])
def test_lengths_beyond_the_times_are_refused(lengths):
    with pytest.raises(UserError, match=f"lengths: got {lengths[0]} to {lengths[1]}, must be from 1 to 6"):
        presence(torch.tensor(lengths), 6)


@pytest.mark.parametrize("state", [make_state(batch=1), make_state(layers=1), make_state()[:1]])
def test_states_of_other_shapes_are_refused(state):
    """A state of one row would be broadcast in silence."""
    with pytest.raises(
        UserError, match=r"state: got tensors of shapes .*must be \[\(2, 4, 5\), \(2, 4, 5\)\]"
    ):
        make_lstm()(draw(6, 4, INPUTS), state)


@pytest.mark.parametrize("make", STACKS)
def test_dropout_acts_between_layers_alone(make):
    """With everything dropped the second layer sees zeros; the first and one alone do not change."""
    x = draw(6, 4, INPUTS)
    stack, plain = make(dropout=1.0), make()
    plain.load_state_dict(stack.state_dict())
    outputs, last = stack(x)
    _, expected = plain(x)
    torch.testing.assert_close(last[0][0], expected[0][0])
    zeros = tuple(part[0] for part in stack.initial_state(4))
    torch.testing.assert_close(outputs, stack.cells[1].scan(torch.zeros(6, 4, UNITS).double(), zeros)[0])
    torch.testing.assert_close(stack.eval()(x), plain(x))
    torch.testing.assert_close(make(layers=1, dropout=1.0)(x), make(layers=1)(x))


def test_dropout_keeps_the_mean_and_is_keyed():
    stack = make_lstm(dropout=0.5)
    seen = []
    scan = stack.cells[1].scan
    stack.cells[1].scan = lambda x, *rest: (seen.append(x), scan(x, *rest))[1]
    for key in ("a", "a", "b"):
        with seeded(key):
            stack(draw(6, 400, INPUTS))
    whole = stack.cells[0].scan(draw(6, 400, INPUTS), tuple(part[0] for part in stack.initial_state(400)))[0]
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * whole[kept])
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


class _Masked(nn.Module):
    """A stack on rows of different lengths, states flattened."""

    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def forward(self, x, lengths, *state):
        mask = (torch.arange(x.shape[0])[:, None] < lengths).unsqueeze(-1)
        outputs, last = self.stack(x, state, present=mask)
        return outputs, *last


@pytest.mark.slow
@pytest.mark.parametrize("make", STACKS)
def test_exports_with_any_number_of_rows(make):
    stack = make().eval()
    batch = torch.export.Dim("batch", min=1)
    given = (draw(4, 2, INPUTS), torch.tensor([3, 4]), *stack.initial_state(2))
    shapes = ({1: batch}, {0: batch}, ({1: batch},) * len(stack.initial_state(2)))
    program = torch.export.export(_Masked(stack), given, dynamic_shapes=shapes)
    x, lengths = draw(4, 5, INPUTS, key="other"), torch.tensor([1, 4, 2, 3, 4])
    outputs, last = stack(x, present=presence(lengths, 4))
    found = program.module()(x, lengths, *stack.initial_state(5))
    torch.testing.assert_close(found, (outputs, *last))
