"""What Adam teaches a rule: its gradient against central differences, and that it is learned."""

import pytest
import torch

from metalearn.learned_optimizers import imitation
from metalearn.learned_optimizers.config import ImitationOptions
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.tree import detach, norm

STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}  # fourth order
TEACHER = ImitationOptions(4, 0.05, [0.9, 0.999], 1e-8)


def _method(kit, **changes):
    method = kit.learner(kit.Blobs(), imitation=TEACHER, hidden=3, layers=1, problems=2, **changes)
    fresh = method.rule.init(generator("weights"))
    method.meta = {key: leaf.to(torch.get_default_dtype()).requires_grad_() for key, leaf in fresh.items()}
    return method


def _recorded(run, steps):
    """Places, gradients and moves of torch's own Adam on the same problems."""
    theta = run.optimizee.start("train", run.numbers).requires_grad_()
    teacher, found = torch.optim.Adam([theta], TEACHER.learning_rate, (0.9, 0.999), TEACHER.epsilon), []
    for batch in run.batches(0, steps):
        theta.grad = torch.autograd.grad(run.optimizee.total(theta, batch), theta)[0]
        before = theta.detach().clone()
        teacher.step()
        found.append((before, theta.grad, theta.detach() - before))
    return found


def _error(run, meta, recorded, steps):
    """The mean over `steps` of the squared differences, the rule's memory from the first step on."""
    inner, errors = run.init(meta, generator(0)), []
    for theta, grad, move in recorded:
        after = run.update(meta, inner._replace(params={"theta": theta}), {"theta": grad})
        errors.append(((after.params["theta"] - theta - move) / TEACHER.learning_rate).square().mean())
        inner = after
    return torch.stack(errors[-steps:]).mean()


def test_gradient_agrees_with_central_differences(kit, float64):  # noqa: ARG001
    """Against torch's Adam; the second unroll goes on from the first by value."""
    method = _method(kit)
    run, _ = method.run(0, 0)
    first = imitation.imitate(run, method.meta, imitation.start(run, method.meta), run.batches(0, 3), TEACHER)
    recorded = _recorded(run, 6)
    torch.testing.assert_close(first.loss, _error(run, detach(method.meta), recorded[:3], 3))
    for key, leaf in method.meta.items():
        direction, expected = torch.randn(leaf.shape, generator=generator(key), dtype=leaf.dtype), 0.0
        for side, weight in STENCIL.items():
            moved = {key: leaf.detach() + side * 1e-3 * direction}
            expected += weight * _error(run, detach(method.meta) | moved, recorded[:3], 3) / 1e-3
        torch.testing.assert_close((first.grad[key] * direction).sum(), expected, rtol=1e-6, atol=1e-8)
    assert norm(first.grad) > 1e-2

    second = imitation.imitate(run, method.meta, first.carry, run.batches(3, 3), TEACHER)
    torch.testing.assert_close(second.loss, _error(run, detach(method.meta), recorded, 3))


@pytest.mark.parametrize(
    "stop",
    [
        3,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
        pytest.param(5, marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_exact_while_imitating_and_after(kit, stop):
    whole, first, second = _method(kit), _method(kit), _method(kit)
    told = [whole.step(index) for index in range(7)]
    assert [next(iter(metrics)) for metrics in told] == ["train/imitation_loss"] * 4 + ["train/meta_loss"] * 3
    for index in range(stop):
        first.step(index)
    second.load_state_dict(kit.saved(first.state_dict()))
    assert [second.step(index) for index in range(stop, 7)] == told[stop:]


def test_own_runs_begin_anew_after_it(kit):
    """In the middle of a run that imitated: the first step of meta-training is that of a method without."""
    method = _method(kit)
    method.step(0)
    with pytest.raises(UserError, match=r"step 3 imitates Adam .* method.imitation.steps=4"):
        method.situations(3)
    (found,) = method.situations(4)
    start = method.family.draw("train", 0).start("train", (0, 1))
    assert torch.equal(found.inner.params["theta"], start)


@pytest.mark.slow
def test_a_rule_learns_to_be_adam(kit):
    """Its updates come within a tenth of Adam's rate, in the mean square of what it began with."""
    options = ImitationOptions(300, 0.02, [0.9, 0.999], 1e-8)
    method = kit.learner(kit.Blobs(), imitation=options, hidden=8, output_scale=0.05, learning_rate=0.01)
    losses = [method.step(index)["train/imitation_loss"].item() for index in range(300)]
    assert sum(losses[-20:]) / 20 < 0.2 * losses[0]
    assert "train/meta_loss" in method.step(300)
