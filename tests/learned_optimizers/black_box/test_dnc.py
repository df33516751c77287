"""The memory's addressing by hand and by its invariants; the LSTM against torch's."""

import pytest
import torch

from metalearn.learned_optimizers.black_box.controller import Lstm
from metalearn.learned_optimizers.black_box.dnc import (
    Dnc,
    allocation,
    content_weighting,
    links_after,
    usage_after,
)
from metalearn.rng import generator

F64 = {"dtype": torch.float64}


def dnc():
    return Dnc(Lstm(3 + 2 * 4, 2, 6, 1.0), slots=5, width=4, heads=2)


def doubled(controller):
    return {key: 3 * leaf.double() for key, leaf in controller.init(generator("dnc")).items()}


def after(steps, batch=3):
    """States after each of some steps on random inputs."""
    controller = dnc()
    meta, rng = doubled(controller), generator("inputs")
    state, states = controller.state(batch, torch.zeros((), **F64)), []
    for _ in range(steps):
        _, state = controller.apply(meta, 2 * torch.randn(batch, 3, generator=rng).double(), state)
        states.append(state)
    return states


def test_the_lstm_is_torchs():
    """Gates in torch's order are input, forget, candidate, output."""
    ours, theirs = Lstm(3, 2, 5, 0.0), torch.nn.LSTMCell(3, 5)
    meta = ours.init(generator("lstm"))
    meta["lstm.bias"] = torch.randn(20, generator=generator("bias"))
    order = [0, 1, 3, 2]
    weight = torch.cat([meta["lstm.weight"].view(8, 4, 5)[:, g] for g in order], 1).T
    with torch.no_grad():
        theirs.weight_ih.copy_(weight[:, :3])
        theirs.weight_hh.copy_(weight[:, 3:])
        theirs.bias_ih.copy_(meta["lstm.bias"].view(4, 5)[order].flatten())
        theirs.bias_hh.zero_()
        state, pair = ours.state(7, torch.zeros(())), (torch.zeros(7, 5), torch.zeros(7, 5))
        for step in range(3):
            x = torch.randn(7, 3, generator=generator("x", step))
            state, pair = ours.advance(meta, x, state), theirs(x, pair)
            torch.testing.assert_close(state["hidden"], pair[0])
            torch.testing.assert_close(state["cell"], pair[1])


def test_content_is_found():
    memory = torch.tensor([[[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]]], **F64)
    keys = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], **F64)
    found = content_weighting(memory, keys, torch.tensor([[5.0, 50.0]], **F64))
    cosines = torch.tensor([1.0, 0.0, 0.5**0.5], **F64)
    torch.testing.assert_close(found[0, 0], torch.softmax(5 * cosines, 0), rtol=1e-4, atol=1e-4)
    assert found[0, 1, 1] > 0.99
    torch.testing.assert_close(found.sum(2), torch.ones(1, 2, **F64))


def test_allocation_takes_the_least_used_first():
    """(1 - u) times the product of all smaller ones: 0.9, 0.1 * 0.5, 0.1 * 0.5 * 0.2."""
    found = allocation(torch.tensor([[0.5, 0.1, 0.8]], **F64))
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.9, 0.01]], **F64), rtol=1e-4, atol=1e-5)
    assert allocation(torch.ones(1, 4, **F64)).abs().max() < 1e-5
    assert allocation(torch.zeros(1, 4, **F64))[0].tolist() == pytest.approx([1, 0, 0, 0], abs=1e-4)


def test_usage_by_hand():
    usage = torch.tensor([[0.5, 0.0]], **F64)
    reads = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], **F64)
    free = torch.tensor([[1.0, 0.5]], **F64)
    found = usage_after(usage, torch.tensor([[0.2, 0.7]], **F64), free, reads)
    torch.testing.assert_close(found, torch.tensor([[(0.5 + 0.2 - 0.1) * 0.5, 0.0]], **F64))


def test_links_follow_the_order_of_writing():
    """Slots 2, 0, 1 written one after the other: L[0, 2] = L[1, 0] = 1."""
    links, precedence = torch.zeros(1, 3, 3, **F64), torch.zeros(1, 3, **F64)
    for slot in (2, 0, 1):
        write = torch.eye(3, **F64)[slot : slot + 1]
        links = links_after(links, precedence, write)
        precedence = (1 - write.sum(1, keepdim=True)) * precedence + write
    expected = torch.zeros(3, 3, **F64)
    expected[0, 2] = expected[1, 0] = 1
    torch.testing.assert_close(links[0], expected)


def test_invariants():
    """Weightings are >= 0 and sum to at most 1, likewise rows and columns of links, whose diagonal is 0."""
    for state in after(12):
        for weighting in (state["write"], state["precedence"], state["weightings"]):
            assert weighting.min() >= 0
            assert weighting.sum(-1).max() <= 1 + 1e-9
        assert 0 <= state["usage"].min() <= state["usage"].max() <= 1
        links = state["links"]
        assert links.min() >= -1e-12
        assert links.diagonal(dim1=1, dim2=2).abs().max() == 0
        assert links.sum(1).max() <= 1 + 1e-9
        assert links.sum(2).max() <= 1 + 1e-9


def test_memory_is_in_use():
    states = after(6)
    assert states[-1]["usage"].max() > 0.2
    assert states[-1]["memory"].abs().max() > 0.05
    assert states[-1]["reads"].abs().max() > 1e-3


def test_what_was_written_is_read_in_order():
    """Heads that follow the links come from the first row written to the second, and back."""
    controller = dnc()
    state = controller.state(1, torch.zeros((), **F64))
    says = controller.interface(torch.zeros(1, sum(controller.sizes), **F64))
    certain = says._replace(
        write_gate=torch.ones(1, 1, **F64), allocate=torch.ones(1, 1, **F64), free=torch.zeros(1, 2, **F64)
    )
    rows, slots = torch.eye(4, **F64)[:3], []
    for row in rows:
        wanted = certain._replace(write=row.unsqueeze(0), erase=torch.zeros(1, 4, **F64))
        state = state | controller.written(wanted, state)
        slots.append(int(state["write"].argmax()))
    assert len(set(slots)) == 3
    torch.testing.assert_close(state["memory"][0, slots], rows, rtol=1e-4, atol=1e-4)
    looks = torch.zeros(1, 2, 5, **F64)
    looks[0, 0, slots[0]] = looks[0, 1, slots[2]] = 1
    modes = torch.zeros(1, 2, 3, **F64)
    modes[0, 0, 2] = modes[0, 1, 0] = 1
    reads = controller.read(says._replace(modes=modes), state | {"weightings": looks}, state)["reads"]
    torch.testing.assert_close(reads[0], rows[1].expand(2, 4), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_gradient_of_every_weight():
    controller = dnc()
    meta, names = doubled(controller), list(controller.init(generator("dnc")))
    inputs = [torch.randn(2, 3, generator=generator("x", t)).double() for t in range(3)]

    def outputs(*leaves):
        state = controller.state(2, leaves[0])
        for x in inputs:
            output, state = controller.apply(dict(zip(names, leaves, strict=True)), x, state)
        return output

    leaves = [meta[name].requires_grad_() for name in names]
    torch.autograd.gradcheck(outputs, leaves, eps=1e-6, atol=1e-5, fast_mode=True)
