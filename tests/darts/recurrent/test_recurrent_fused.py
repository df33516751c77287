"""The fused form of the recurrent supernet against the plain one."""

import copy

import pytest
import torch

from metalearn.darts.recurrent import scan
from metalearn.darts.recurrent.kernel import CompiledNodes, library
from metalearn.darts.recurrent.nodes import EagerNodes
from metalearn.darts.space import Mixture, one_path, running_statistics_kept, set_evaluation
from metalearn.registry import UserError
from metalearn.rng import generator, seeded

DROPOUTS = ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout")
needs_compiler = pytest.mark.skipif(library(torch.float64) is None, reason="no C compiler here")


@pytest.fixture(params=["eager", pytest.param("compiled", marks=needs_compiler)])
def nodes(request, monkeypatch):
    """Each form of the nodes in turn."""
    chosen = EagerNodes() if request.param == "eager" else CompiledNodes(library(torch.float64))
    monkeypatch.setattr(scan, "nodes_for", lambda _: chosen)
    return request.param


def both_ways(network, text):
    """Loss, penalty, last state, all gradients and buffers after three batches: plain, then fused."""
    found = []
    for fused in (False, True):
        run = copy.deepcopy(network)
        run.fused, state, rows = fused, None, []
        for index in range(3):
            batch = text.batch("train", index)
            rng = generator("shares", index)
            alpha = torch.randn(run.choices["cell"].shape, generator=rng, dtype=torch.float64)
            weights = {"cell": alpha.softmax(dim=-1).requires_grad_()}
            with seeded(*batch.key):
                output = run(batch.x, state, Mixture(weights))
            loss = text.loss(output.logits, batch)
            total = loss if output.penalty is None else loss + output.penalty
            leaves = {"weights": weights["cell"], **dict(run.named_parameters())}
            if state is not None:
                leaves["start"] = state["hidden"]
            grads = torch.autograd.grad(total, list(leaves.values()))
            rows.append({"loss": total.detach(), **dict(zip(leaves, grads, strict=True))})
            state = {"hidden": output.state["hidden"].detach().requires_grad_()}
        found.append((rows, state, dict(run.named_buffers())))
    return found


@pytest.mark.usefixtures("nodes")
def test_values_gradients_and_running_statistics_are_those_of_the_plain_form(recurrent_supernet, text):
    plain, fused = both_ways(recurrent_supernet(nodes=4, units=19, start=0.5), text)
    for expected, found in zip(plain[0], fused[0], strict=True):
        for key, leaf in expected.items():
            size = float(leaf.abs().max())
            torch.testing.assert_close(found[key], leaf, rtol=0, atol=1e-12 * max(size, 1e-3), msg=key)
    torch.testing.assert_close(fused[1:], plain[1:], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("nodes")
def test_statistics_are_kept_and_evaluation_has_no_masks(recurrent_supernet, text):
    plain = recurrent_supernet()
    fused, x = copy.deepcopy(plain), text.batch("train", 0).x
    fused.fused = True
    for network in (plain, fused):
        set_evaluation(network, batch_statistics=True)
    with running_statistics_kept(fused), running_statistics_kept(plain):
        torch.testing.assert_close(fused(x).logits, plain(x).logits, rtol=1e-12, atol=1e-13)
    assert not fused.cell.norm.running_mean.any()
    assert fused.cell.norm.num_batches_tracked == 0
    set_evaluation(fused, batch_statistics=False)
    set_evaluation(plain, batch_statistics=False)
    torch.testing.assert_close(fused(x).logits, plain(x).logits, rtol=0, atol=0)


def test_it_is_used_where_it_may_be(recurrent_supernet, text, monkeypatch):
    network, x, calls = recurrent_supernet(), text.batch("train", 0).x, []
    monkeypatch.setattr(type(network.cell), "scan", lambda _, inputs, *__: calls.append(1) or inputs)
    network(x)
    assert not calls
    network.fused = True
    network(x)
    network(x, mixture=one_path(network.encode(network.sample(generator("path"))), network.words.weight))
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    network.eval()(x)
    assert calls == [1]


@pytest.mark.usefixtures("nodes")
def test_gradients_are_wanted_only_where_asked_for(recurrent_supernet, text):
    """A pass for alpha alone, as in the search."""
    network, batch = recurrent_supernet(), text.batch("train", 0)
    grads = []
    for fused in (False, True):
        network.fused = fused
        weights = torch.full((6, 5), 0.2, dtype=torch.float64, requires_grad=True)
        params = {key: leaf.detach() for key, leaf in network.named_parameters()}
        with seeded("masks"):
            output = torch.func.functional_call(
                network, params, (batch.x,), {"mixture": Mixture({"cell": weights})}
            )
        grads.append(torch.autograd.grad(text.loss(output.logits, batch), weights)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("nodes")
def test_second_derivatives_and_second_passes_are_refused(recurrent_supernet, text):
    network, batch = recurrent_supernet(), text.batch("train", 0)
    network.fused = True
    loss = text.loss(network(batch.x).logits, batch)
    with pytest.raises(UserError, match=r"no second derivative; set machine\.fused=false"):
        torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    loss = text.loss(network(batch.x).logits, batch)
    torch.autograd.grad(loss, network.words.weight, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, network.words.weight)


def test_one_row_is_refused(recurrent_supernet, text):
    with pytest.raises(UserError, match="no variance to normalise by"):
        recurrent_supernet()(text.batch("train", 0).x[:1])


@needs_compiler
def test_the_kernel_s_functions_hold_at_the_ends_of_the_numbers():
    """Large, tiny and undefined gates and candidates, against torch's functions."""
    ends = [0.0, 1e-30, -1e-30, 1e-5, -1e-5, 3.0, -3.0, 40.0, -40.0, 800.0, -800.0, float("nan")]
    values = torch.tensor(ends, dtype=torch.float64)
    gates, candidates = (part.flatten() for part in torch.meshgrid(values, values, indexing="ij"))
    product = torch.cat([gates, candidates])[None, None].repeat(1, 2, 1).contiguous()
    shares = torch.tensor([[0.1, 0.3, 0.2, 0.25, 0.15]], dtype=torch.float64)
    mask = torch.ones(2, len(gates), dtype=torch.float64)
    found = []
    for nodes in (EagerNodes(), CompiledNodes(library(torch.float64))):
        states = torch.zeros(2, *mask.shape, dtype=torch.float64)
        states[0, 0], states[0, 1] = 0.5, -0.5
        used, statistics = product.clone(), torch.empty(2, len(gates), dtype=torch.float64)
        nodes.node_forward(used, shares, states, torch.empty_like(states), mask, statistics)
        grads = torch.randn(states.shape, generator=generator("grads"), dtype=torch.float64)
        totals = torch.zeros(1, 5, dtype=torch.float64)
        nodes.node_backward(used, shares, states, statistics, grads, totals)
        found.append((states, statistics[0], used, grads[0]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10, equal_nan=True)


def test_single_precision_is_as_good_as_it_can_be(recurrent_supernet, text):
    """Against the plain form in double precision; the plain one in single precision errs as much."""
    batch, grads = text.batch("train", 0), []
    for dtype, fused in ((torch.float64, False), (torch.float32, True), (torch.float32, False)):
        network = recurrent_supernet(dtype, units=19, **dict.fromkeys(DROPOUTS, 0.0))
        network.fused = fused
        loss = text.loss(network(batch.x).logits, batch)
        leaves = torch.autograd.grad(loss, list(network.parameters()))
        grads.append(torch.cat([leaf.flatten() for leaf in leaves]).double())
    errors = [float((found - grads[0]).norm() / grads[0].norm()) for found in grads[1:]]
    assert errors[0] < max(1e-6, 3 * errors[1])
