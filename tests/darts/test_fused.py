"""The fused supernet against the plain one, in float64: one function of the same parameters."""

import dataclasses

import pytest
import torch
from torch.func import functional_call

import metalearn.darts.fused.cell as fused_cells
import metalearn.darts.fused.kernels as fused_kernels
import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.fused import compiled
from metalearn.darts.fused.kernels import SOURCE
from metalearn.darts.search import Darts
from metalearn.darts.space import Mixture, running_statistics_kept
from metalearn.darts.supernet import Supernet
from metalearn.hypergradient.config import FiniteDifferenceOptions, FirstOrderOptions
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.kernels import build
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.tree import Tree, tree_map

ESTIMATORS = {
    "first_order": FirstOrder(FirstOrderOptions("first_order")),
    "finite_difference": FiniteDifference(FiniteDifferenceOptions("finite_difference", 0.01)),
}


@pytest.fixture(scope="session")
def composed():
    return compose(["method=darts", "network=darts_supernet", "task=digits"])


@pytest.fixture
def supernet(composed, images):
    """Builds three cells of two nodes, of which two reduce, in float64."""

    def make(fused: bool) -> Supernet:
        options = dataclasses.replace(composed.network, cells=3, channels=8, nodes=2, stem_multiplier=1)
        with seeded("fused"):
            network = Supernet(options, images(torch.float64).spec).double()
        network.fused = fused
        return network

    return make


@pytest.fixture
def search(composed, images, supernet):
    """Builds a search of a hundred steps in float64 by `machine.fused`."""

    def build_search(order: str, fused: bool) -> Darts:
        machine = Machine(dataclasses.replace(composed.machine, device="cpu", fused=fused, threads=0))
        context = Context(images(torch.float64), lambda: supernet(False), ESTIMATORS[order], machine, 0, 100)
        built = Darts(composed.method, context)
        for leaf in built.alpha.values():
            leaf.data = leaf.data.double()
        return built

    return build_search


def alphas(network: Supernet) -> Tree:
    return {
        kind: torch.randn(choice.shape, generator=generator(kind), dtype=torch.float64).requires_grad_()
        for kind, choice in network.choices.items()
    }


def run(network: Supernet, batch) -> tuple[torch.Tensor, Tree]:
    """The loss, and its gradient by alpha and by the weights."""
    alpha = alphas(network)
    params = {key: leaf.detach().requires_grad_() for key, leaf in network.named_parameters()}
    mixture = Mixture(tree_map(lambda leaf: leaf.softmax(dim=-1), alpha))
    logits = functional_call(network, params, (batch.x,), {"mixture": mixture}).logits
    loss = torch.nn.functional.cross_entropy(logits, batch.y)
    leaves = alpha | params
    return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def assert_equal(found: Tree, expected: Tree, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for key in expected:
        worst = (found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp_min(1e-9)
        assert worst < tolerance, (key, float(worst))


@pytest.fixture
def form(request, monkeypatch):
    """Compiled kernels, or torch's operations as where there is no compiler."""
    if request.param == "compiled" and build(torch.float64, SOURCE).library is None:
        pytest.skip(build(torch.float64, SOURCE).reason)
    if request.param == "eager":
        monkeypatch.setattr(fused_cells, "kernels", lambda _: None)
    return request.param


def forms(test):
    """Run a test in both."""
    both = pytest.mark.parametrize("form", ["compiled", "eager"], indirect=True)
    return pytest.mark.usefixtures("form")(both(test))


@forms
def test_loss_gradients_and_statistics_are_the_plain_ones(supernet, images):
    """The net has a normal cell and two reduction cells."""
    batch = images(torch.float64).batch("search_train", 0)
    plain, fused = supernet(False), supernet(True)
    expected, gradients = run(plain, batch)
    loss, found = run(fused, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    assert_equal(found, gradients)
    buffers = dict(plain.named_buffers())
    assert float(buffers["stem.1.num_batches_tracked"]) == 1
    torch.testing.assert_close(dict(fused.named_buffers()), buffers, rtol=1e-12, atol=1e-14)


@forms
def test_odd_maps_after_the_reductions(supernet, images):
    """Of 12x12 images 3x3 maps are left; MNIST has 7x7."""
    batch = images(torch.float64).batch("train", 0)
    batch = batch._replace(x=torch.nn.functional.pad(batch.x, (2, 2, 2, 2), mode="reflect"))
    (found, grads), (loss, expected) = (run(supernet(fused), batch) for fused in (True, False))
    torch.testing.assert_close(found, loss, rtol=1e-12, atol=0)
    assert_equal(grads, expected, tolerance=1e-10)


@forms
def test_kept_statistics_stay(supernet, images):
    network = supernet(True)
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    with running_statistics_kept(network):
        run(network, images(torch.float64).batch("search_train", 0))
    torch.testing.assert_close(dict(network.named_buffers()), before, rtol=0, atol=0)


@forms
@pytest.mark.parametrize("order", ESTIMATORS)
def test_search_step_is_the_plain_one(search, order):
    """Alpha, weights, momenta and statistics after a step; in second order alpha is the whole estimate's."""
    plain, fused = search(order, False), search(order, True)
    assert fused.network.fused
    assert not plain.network.fused
    expected, found = plain.step(0), fused.step(0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for part in ("alpha", "params", "slots", "buffers"):
        torch.testing.assert_close(
            fused.state_dict()[part],
            plain.state_dict()[part],
            rtol=1e-9,
            atol=1e-12,
            msg=lambda m, part=part: part + m,
        )


@forms
def test_gradients_of_alpha_alone(supernet, images):
    """The pass of alpha skips the weights' gradients and still gives alpha's."""
    batch = images(torch.float64).batch("search_valid", 0)
    found = []
    for fused in (False, True):
        network, alpha = supernet(fused), alphas(supernet(False))
        params = {key: leaf.detach() for key, leaf in network.named_parameters()}
        logits = functional_call(network, params, (batch.x,), {"mixture": Mixture(alpha)}).logits
        loss = torch.nn.functional.cross_entropy(logits, batch.y)
        found.append(dict(zip(alpha, torch.autograd.grad(loss, list(alpha.values())), strict=True)))
    assert_equal(found[1], found[0])


@forms
def test_second_derivative_is_refused(supernet, images):
    network, batch = supernet(True), images(torch.float64).batch("search_train", 0)
    mixture = Mixture(alphas(network))
    loss = network(batch.x, mixture=mixture).logits.square().sum()
    with pytest.raises(UserError, match=r"machine\.fused=false"):
        torch.autograd.grad(loss, list(mixture.weights.values()), create_graph=True)


def test_same_bits_each_time(supernet, images):
    batch = images(torch.float64).batch("search_train", 0)
    torch.testing.assert_close(run(supernet(True), batch), run(supernet(True), batch), rtol=0, atol=0)


def test_threads_share_the_images(supernet, images, monkeypatch):
    """Three threads for eight images."""
    batch = images(torch.float64).batch("search_train", 0)
    _, expected = run(supernet(True), batch)
    monkeypatch.setattr(fused_kernels, "threads", lambda _: 3)
    monkeypatch.setattr(compiled, "threads", lambda _: 3)
    assert_equal(run(supernet(True), batch)[1], expected)


def test_what_is_not_known_takes_the_plain_cells(supernet, images):
    network, x = supernet(True), images(torch.float64).batch("search_train", 0).x
    cell = network.cells[0]
    everything = torch.ones(len(cell.edges), 8).bool().tolist()
    assert fused_cells.fusable(cell, x, None)
    assert not fused_cells.fusable(cell, x, everything)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused_cells.fusable(cell, x, None)
    narrow = {kind: torch.ones(choice.shape).bool() for kind, choice in network.choices.items()}
    narrow["normal"][0, 4] = False
    assert not fused_cells.fusable(network.restricted(3, narrow).cells[0], x, None)
    assert not fused_cells.fusable(cell.eval(), x, None)


def test_no_compiler_is_no_error(monkeypatch, tmp_path, supernet, images):
    """Without a compiler, with a failing one or with a cache that cannot be written: a reason, no library."""
    batch = images(torch.float64).batch("search_train", 0)
    _, expected = run(supernet(False), batch)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such target >&2\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "file").write_text("")
    for compiler, cache, reason in (
        ("/nowhere/cc", tmp_path, "no C compiler"),
        (str(broken), tmp_path, "no such target"),
        (None, tmp_path / "file", "was not built"),
    ):
        build.cache_clear()
        monkeypatch.setenv("METALEARN_CACHE_DIR", str(cache))
        monkeypatch.setenv("CC", compiler) if compiler else monkeypatch.delenv("CC", raising=False)
        assert reason in build(torch.float64, SOURCE).reason
    assert_equal(run(supernet(True), batch)[1], expected)
    build.cache_clear()


def test_kernels_are_built_once(monkeypatch, tmp_path):
    if build(torch.float32, SOURCE).library is None:
        pytest.skip(build(torch.float32, SOURCE).reason)
    build.cache_clear()
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path))
    assert build(torch.float32, SOURCE).library is not None
    (made,) = (tmp_path / "kernels").iterdir()
    first = made.stat().st_mtime_ns
    build.cache_clear()
    assert build(torch.float32, SOURCE).library is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "kernels").iterdir()] == [first]
    build.cache_clear()
