"""The kernel of the coordinatewise LSTM against the plain operations."""

import pytest
import torch

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.hypergradient import inner_run
from metalearn.learned_optimizers.fused.kernel import Given, Stack, Wanted, backward, library
from metalearn.learned_optimizers.fused.step import fusable, fused_step, state_names, weights_of
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.lstm import CoordinateLstm
from metalearn.learned_optimizers.preprocess import log_sign
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.registry import UserError, build
from metalearn.rng import generator

pytestmark = pytest.mark.skipif(library(torch.float64) is None, reason="no C compiler")
SIZES = [  # coordinates, inputs, layers, hidden, p
    (150, 2, 2, 20, 10.0),
    (64, 1, 1, 3, 0.0),
    (33, 2, 3, 7, 0.0),
    (1, 1, 2, 20, 0.0),
    (0, 1, 2, 4, 0.0),
    (257, 2, 1, 21, 5.0),
    (200, 5, 3, 5, 0.0),
]


def case(sizes, dtype):
    """A stack, its plain form, weights, what it sees, and states, all leaves of a graph."""
    coordinates, inputs, layers, hidden, p = sizes
    rng = generator("fused", *sizes)
    plain = CoordinateLstm(inputs, layers, hidden, 1.0, "uniform")
    meta = {name: torch.randn(leaf.shape, generator=rng) * 0.5 for name, leaf in plain.init(rng).items()}
    shape = (coordinates,) if p or inputs == 1 else (coordinates, inputs)
    seen = torch.randn(shape, generator=rng)
    if p:  # gradients of all sizes, on both sides of exp(-p)
        seen = seen * 10 ** (8 * torch.rand(shape, generator=rng) - 7)
    state = plain.state(coordinates, seen)
    state = {name: torch.randn(leaf.shape, generator=rng) for name, leaf in state.items()}

    def ready(leaf):
        return leaf.to(dtype).requires_grad_()

    meta, state = ({name: ready(leaf) for name, leaf in tree.items()} for tree in (meta, state))
    return Stack(inputs, layers, hidden, 1.0, p), plain, meta, ready(seen), state


def plainly(stack, plain, meta, seen, state):
    features = log_sign(seen, stack.p) if stack.p else seen.view(len(seen), stack.inputs)
    return plain.apply(meta, features, state)


def gradients(output, after, leaves):
    """Of a random function of all that a step gives."""
    ends = [output, *(after[name] for name in sorted(after))]
    rng = generator("cotangents")
    seeds = [torch.randn(end.shape, generator=rng).to(end) for end in ends]
    return torch.autograd.grad(ends, leaves, seeds)


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_plain_operations(sizes, dtype, exact):
    stack, plain, meta, seen, state = case(sizes, dtype)
    leaves = [*meta.values(), seen, *state.values()]
    output, after = fused_step(stack, meta, seen, state)
    expected, expected_after = plainly(stack, plain, meta, seen, state)
    torch.testing.assert_close(output, expected, rtol=exact, atol=exact)
    torch.testing.assert_close(after, expected_after, rtol=exact, atol=exact)
    found, wanted = gradients(output, after, leaves), gradients(expected, expected_after, leaves)
    for one, other in zip(found, wanted, strict=True):
        largest = other.abs().max().item() if other.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=exact, atol=exact * largest)


def test_passes_gradcheck():
    stack, _, meta, seen, state = case((5, 2, 2, 3, 3.0), torch.float64)
    names, keys = list(state), list(meta)

    def function(seen, *leaves):
        weights = dict(zip(keys, leaves[len(names) :], strict=True))
        output, after = fused_step(stack, weights, seen, dict(zip(names, leaves, strict=False)))
        return output, *after.values()

    assert torch.autograd.gradcheck(function, (seen, *state.values(), *meta.values()), fast_mode=True)


def test_several_steps_back_at_once_are_those_one_by_one():
    stack, _, meta, _, state = case((70, 2, 2, 6, 5.0), torch.float64)
    rng = generator("steps")
    seen, seeds = torch.randn(2, 4, 70, generator=rng, dtype=torch.float64).unbind(0)
    here, outputs = state, []
    for grad in seen:
        output, here = fused_step(stack, meta, grad, here)
        outputs.append(output)
    loss = (torch.stack(outputs) * seeds).sum() + sum(leaf.square().sum() for leaf in here.values())
    names, weights = state_names(stack), weights_of(stack, meta)
    starts = [state[name] for name in names]
    expected = torch.autograd.grad(loss, [*starts, *weights])
    with torch.no_grad():
        ends = [2 * here[name] for name in names]
        given = Given(seen, starts, weights)
        _, by_states, by_weights = backward(stack, given, seeds, ends, Wanted(seen=False, states=True))
    torch.testing.assert_close([*by_states, *by_weights], list(expected), rtol=1e-11, atol=1e-11)


def test_bits_do_not_depend_on_threads():
    stack, _, meta, seen, state = case((3000, 2, 2, 5, 10.0), torch.float32)
    found, threads = [], torch.get_num_threads()
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        output, after = fused_step(stack, meta, seen, state)
        found.append([output, *gradients(output, after, [*meta.values(), seen, *state.values()])])
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_gradients_that_are_not_finite_do_what_they_do_to_the_plain_form():
    stack, plain, meta, _, state = case((4, 2, 2, 5, 10.0), torch.float64)
    seen = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0], dtype=torch.float64)
    output, _ = fused_step(stack, meta, seen, state)
    expected, _ = plainly(stack, plain, meta, seen, state)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_small_inputs_keep_their_digits():
    """In float32 the candidate's tanh of 1e-6 is exact to a few parts in 1e7."""
    stack = Stack(1, 1, 1, 0.0, 0.0)
    weight = torch.zeros(2, 4)
    weight[0, 3] = 1.0
    meta = {"lstm.0.weight": weight, "lstm.0.bias": torch.zeros(4)}
    meta |= {"linear.weight": torch.ones(1, 1), "linear.bias": torch.zeros(1)}
    state = {"hidden.0": torch.zeros(2, 1), "cell.0": torch.zeros(2, 1)}
    output, _ = fused_step(stack, meta, torch.tensor([1e-6, -3e-5]), state)
    torch.testing.assert_close(output, torch.tensor([1e-6, -3e-5]) / 4, rtol=1e-6, atol=0.0)


def test_a_second_derivative_is_refused():
    stack, _, meta, seen, state = case((3, 1, 1, 2, 0.0), torch.float64)
    output, _ = fused_step(stack, meta, seen, state)
    with pytest.raises(UserError, match=r"machine\.fused=false"):
        torch.autograd.grad(output.sum(), list(meta.values()), create_graph=True, allow_unused=True)


def test_it_stays_out_of_where_it_cannot_run():
    stack, _, meta, seen, state = case((3, 1, 1, 2, 0.0), torch.float64)
    tensors = [seen, *state.values(), *meta.values()]
    assert fusable(stack, *tensors)
    assert not fusable(stack, seen.float(), *tensors)
    assert not fusable(stack, *(tensor.bfloat16() for tensor in tensors))
    within = []
    torch.func.vmap(lambda x: within.append(fusable(stack, *tensors)) or x)(torch.zeros(2))
    torch.func.jvp(lambda x: within.append(fusable(stack, *tensors)) or x, (seen,), (seen,))
    with torch.autograd.forward_ad.dual_level():
        within.append(fusable(stack, *tensors))
    with torch.autocast("cpu", torch.bfloat16):
        within.append(fusable(stack, *tensors))
    assert within == [False] * 4


def test_the_rule_takes_it_unless_told_not_to(kit, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "metalearn.learned_optimizers.lstm.fused_step", lambda *given: taken.append(0) or fused_step(*given)
    )
    learner = kit.learner(kit.Quadratics())
    learner.step(0)
    assert taken
    taken.clear()
    learner.rule.stack = None
    learner.step(1)
    assert not taken


@pytest.mark.parametrize("second", [False, True])
def test_the_meta_gradient_is_the_plain_one(kit, float64, second):  # noqa: ARG001
    found = []
    for fused in (True, False):
        learner = kit.learner(kit.Blobs(), second_derivatives=second, hidden=6)
        learner.rule.stack = learner.rule.stack if fused else None
        learner.step(0)
        found.append({key: leaf.grad for key, leaf in learner.meta.items()})
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [("unrolled", {}), ("unrolled", {"recompute": True}), ("truncated", {"window": 2})],
)
@pytest.mark.parametrize("changes", [{"count_last": True}, {"problems": 2}, {"preprocess": "none"}])
def test_replayed_unrolls_have_the_plain_meta_gradient(kit, float64, estimator, settings, changes):  # noqa: ARG001
    """Two unrolls of a run: parameters and hidden states are carried over."""
    found = []
    for fused in (True, False):
        learner = kit.learner(kit.Blobs(), estimator, settings, hidden=6, **changes)
        learner.rule.stack = learner.rule.stack if fused else None
        grads = []
        for index in range(2):
            told = learner.step(index)
            grads.append([told["train/meta_loss"], *(leaf.grad.clone() for leaf in learner.meta.values())])
        found.append(grads)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_an_unroll_is_one_node(kit):
    """Of 3 steps only the first's states are kept, and theta's place at each."""
    learner = kit.learner(kit.Quadratics())
    run, part = learner.run(0, 0)
    start = run.init(learner.meta, generator("start"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda leaf: kept.append(leaf) or leaf, lambda leaf: leaf):
        _, after = inner_run.run(run, learner.meta, start, learner.segment(run, part))
    states = [leaf for leaf in kept if leaf.shape == start.slots["cell.0"].shape]
    assert len(states) == len(start.slots)
    assert all(one is other for one, other in zip(states, start.slots.values(), strict=True))
    assert after.params["theta"].requires_grad


@pytest.mark.parametrize("rule", ["lstm", "rnnprop"])
def test_rules_take_the_same_steps_without_it(rule):
    options = compose(["method=learned_optimizer", "hypergradient=unrolled", f"rule={rule}", "machine=cpu"])
    layout, found = Layout({"a": (3, 4), "b": (5,)}, torch.device("cpu")), []
    for fused in (True, False):
        options.machine.fused = fused
        built = build("rule", options.rule, machine=Machine(options.machine))
        rng = generator("rules", rule)
        meta = {name: leaf.double() for name, leaf in built.init(rng).items()}
        theta = torch.randn(2, 17, generator=rng, dtype=torch.float64)
        inner = Inner({"theta": theta}, built.slots(theta, layout))
        for _ in range(3):
            grad = torch.randn(2, 17, generator=rng, dtype=torch.float64)
            inner = built.update(meta, inner, {"theta": grad}, layout)
        found.append(inner)
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-13)
