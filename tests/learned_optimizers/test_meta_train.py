"""The method in the loop's hands: resume, evaluation, learning, what it leaves behind."""

import json

import pytest
import torch
from safetensors.torch import load_file

from metalearn.learned_optimizers.meta_train import SERIES, MetaTraining
from metalearn.learned_optimizers.rollout import summary
from metalearn.problem import inner_step
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.train.checkpoint import tensors


@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("task", ["Quadratics", "Blobs"])
def test_resume_is_bit_exact(kit, task, stop):
    """Also inside a run of three unrolls, at its end, and across it."""

    def fresh():
        return MetaTraining(kit.learned(unroll=2), kit.context(getattr(kit, task)()))

    whole = fresh()
    losses = [whole.step(index)["train/meta_loss"] for index in range(8)]
    first, second = fresh(), fresh()
    for index in range(stop):
        first.step(index)
    first.evaluate("valid")
    second.load_state_dict(kit.saved(first.state_dict()))
    resumed = [second.step(index)["train/meta_loss"] for index in range(stop, 8)]

    assert torch.equal(torch.stack(resumed), torch.stack(losses[stop:]))
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    assert second.evaluate("valid") == whole.evaluate("valid")


def test_state_and_parameters_are_carried_within_a_run_only(kit):
    method = MetaTraining(kit.learned(learning_rate=1e-30), kit.context(kit.Blobs()))
    method.step(0)
    after_one = method.carries[0].params["theta"]
    method.step(1)
    start = method.family.optimizee.start("train", (0,))
    assert not torch.equal(after_one, start)
    assert not torch.equal(method.carries[0].params["theta"], after_one)
    method.step(2)
    other = MetaTraining(kit.learned(learning_rate=1e-30), kit.context(kit.Blobs()))
    other.step(2)
    assert torch.equal(method.carries[0].params["theta"], other.carries[0].params["theta"])


@pytest.mark.parametrize("count_last", [False, True])
def test_unrolls_go_on_through_a_run(kit, count_last):
    """Steps 0 to 2, then 3 to 5; the last point, where it counts, is the next unroll's first."""
    method = MetaTraining(kit.learned(count_last=count_last), kit.context(kit.Blobs()))
    run, _ = method.run(2, 0)
    segments = [method.segment(run, part) for part in range(2)]
    assert [batch.key[1] for segment in segments for batch in segment.inner] == [7, 8, 9, 10, 11, 12]
    assert [batch.key[1] for batch in segments[0].outer.values()] == [7, 8, 9, 10][: 3 + count_last]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "ratio"), [("Quadratics", 0.6), ("Blobs", 0.8)])
def test_learns(kit, task, ratio):
    """The final validation loss falls well below that of the untrained LSTM."""
    options = kit.learned(horizon=20, unroll=10, valid_problems=16, deviation=0.5)
    method = MetaTraining(options, kit.context(getattr(kit, task)()))
    before = method.evaluate("valid")["valid/final_loss"]
    for index in range(150):
        method.step(index)
    assert method.evaluate("valid")["valid/final_loss"] < ratio * before


def test_evaluation_is_fixed_and_leaves_the_state(kit):
    method = MetaTraining(kit.learned(), kit.context(kit.Blobs()))
    method.step(0)
    before = kit.saved(method.state_dict())
    first, again = method.evaluate("valid"), method.evaluate("valid")
    assert first == again
    assert first["valid/final_loss"] != method.evaluate("test")["test/final_loss"]
    after = method.state_dict()
    assert all(torch.equal(after["meta"][key], leaf) for key, leaf in before["meta"].items())
    assert all(
        torch.equal(after["carries"][0]["slots"][k], leaf)
        for k, leaf in before["carries"][0]["slots"].items()
    )


def test_metrics_are_means_over_steps_and_functions(kit):
    """At the start the quadratics' loss is E||y||^2 = 3 for theta = 0, whatever their number."""
    for functions in (50, 200):
        method = kit.learner(kit.Quadratics(functions, 3), deviation=0.0, output_scale=1e-6)
        assert method.step(0)["train/meta_loss"].item() == pytest.approx(3.0, rel=0.25)
        assert method.evaluate("valid")["valid/final_loss"].item() == pytest.approx(3.0, rel=0.25)


def test_clip_limits_the_meta_gradient(kit):
    method = kit.learner(kit.Quadratics(), clip=1e-3, output_scale=1.0)
    method.step(0)
    length = torch.stack([leaf.grad.square().sum() for leaf in method.meta.values()]).sum().sqrt()
    assert length.item() == pytest.approx(1e-3, rel=1e-2)


def test_artifacts(kit, tmp_path):
    method = MetaTraining(kit.learned(), kit.context(kit.Blobs()))
    method.step(0)
    final = method.evaluate("test")["test/final_loss"].item()
    method.artifacts(tmp_path)
    weights = load_file(tmp_path / "optimizer.safetensors")
    assert all(torch.equal(weights[key], leaf) for key, leaf in method.meta.items())
    record = json.loads((tmp_path / "optimizer.json").read_text())
    assert (record["rule"]["hidden"], record["task"]) == (20, "blobs")
    curves = json.loads((tmp_path / "trajectories.json").read_text())
    assert curves["x"] == list(range(7))
    assert curves["series"][SERIES][-1] == pytest.approx(final)


def test_bf16_runs(kit):
    context = kit.context(kit.Blobs())
    context.machine.options.precision = "bf16"
    method = MetaTraining(kit.learned(), context)
    assert method.step(0)["train/meta_loss"].isfinite()
    assert method.evaluate("valid")["valid/final_loss"].isfinite()


def test_mistakes_are_explained(kit):
    with pytest.raises(UserError, match=r"unroll: got 4, must divide method.horizon, 6"):
        MetaTraining(kit.learned(unroll=4), kit.context(kit.Blobs()))
    with pytest.raises(UserError, match="hypergradient=unrolled"):
        MetaTraining(kit.learned(), kit.context(kit.Blobs())._replace(hypergradient=None))


UNFIT = [
    ("first_order", {}, "first_order, which takes no inner step"),
    ("neumann", {}, "neumann, .* every point of a run is scored; choose hypergradient=unrolled"),
    ("conjugate_gradient", {}, "conjugate_gradient, .* every point of a run is scored"),
    ("finite_difference", {}, r"exactly one inner step, and method.unroll=3; set method.unroll=1"),
    ("unrolled", {"unroll": 1}, "count_last=false, which scores .* its gradient is zero"),
    ("evolution", {"unroll": 1}, "method.count_last=true, raise method.unroll, or choose hypergradient=pes"),
]


@pytest.mark.parametrize(("name", "changes", "message"), UNFIT)
def test_estimators_that_cannot_teach_are_refused(kit, name, changes, message):
    with pytest.raises(UserError, match=message):
        MetaTraining(kit.learned(**changes), kit.with_estimator(kit.Blobs(), name))


def test_a_window_that_scores_nothing_is_refused(kit):
    context = kit.with_estimator(kit.Blobs(), "truncated", window=1)
    with pytest.raises(UserError, match=r"hypergradient.window: got 1 .* so that the gradient is zero"):
        MetaTraining(kit.learned(), context)
    MetaTraining(kit.learned(count_last=True), context)


FIT = [
    ("unrolled", {}),
    ("truncated", {"window": 3}),
    ("forward", {}),
    ("evolution", {}),
    ("pes", {}),
    ("pes", {"unroll": 1}),
    ("finite_difference", {"unroll": 1, "count_last": True}),
]


@pytest.mark.parametrize(("name", "changes"), FIT)
def test_estimators_that_can_teach_do(kit, name, changes):
    """Two steps move the LSTM by what the estimator says."""
    settings = {key: changes[key] for key in changes if key == "window"}
    options = {"hidden": 2, "layers": 1} | {key: changes[key] for key in changes if key != "window"}
    method = kit.learner(kit.Blobs(), name, settings, **options)
    before = {key: leaf.detach().clone() for key, leaf in method.meta.items()}
    metrics = [method.step(index) for index in range(2)]
    assert all(value.isfinite() for step in metrics for value in step.values())
    assert not all(torch.equal(leaf, before[key]) for key, leaf in method.meta.items())
    assert ("hypergradient/spread" in metrics[0]) == (name in ("evolution", "pes"))


@pytest.mark.parametrize("name", ["evolution", "pes"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_is_bit_exact_by_values_too(kit, name, stop):
    """Particles and their perturbations survive the checkpoint."""

    def fresh():
        return MetaTraining(kit.learned(unroll=2), kit.with_estimator(kit.Blobs(), name, pairs=2))

    whole, first, second = fresh(), fresh(), fresh()
    losses = [whole.step(index)["train/meta_loss"] for index in range(5)]
    for index in range(stop):
        first.step(index)
    second.load_state_dict(kit.saved(first.state_dict()))
    resumed = [second.step(index)["train/meta_loss"] for index in range(stop, 5)]

    assert torch.equal(torch.stack(resumed), torch.stack(losses[stop:]))
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    states = [list(tensors(method.state_dict())) for method in (second, whole)]
    assert [place for place, _ in states[0]] == [place for place, _ in states[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*states, strict=True))
    without = fresh()
    without.load_state_dict({**kit.saved(first.state_dict()), "carries": [None]})
    without.step(stop)
    again = fresh()
    again.load_state_dict(kit.saved(first.state_dict()))
    again.step(stop)
    lost = all(torch.equal(without.meta[key], leaf) for key, leaf in again.meta.items())
    assert lost == (stop == 3)  # where a new run starts there is nothing to lose


def test_a_situation_of_particles_is_a_run_of_its_own(kit):
    """The unperturbed run under the present rule, at the same point and before the same batches."""
    options = kit.learned(unroll=2)
    method = MetaTraining(options, kit.with_estimator(kit.Blobs(), "pes", pairs=2))
    assert torch.equal(
        method.situations(4)[0].inner.params["theta"],
        method.family.optimizee.start("train", (1,)),
    )
    for index in range(5):
        method.step(index)
    before = kit.saved(method.state_dict())
    (found,) = method.situations(5)

    run, _ = method.run(5, 0)
    inner = run.init(method.meta, generator(0))
    for batch in run.batches(0, 4):
        inner = inner_step(run, method.meta, inner, batch)
    torch.testing.assert_close(found.inner, inner.detach(), rtol=0, atol=0)
    assert [batch.key[1] for batch in found.segment.inner] == [7 + 4, 7 + 5]
    after = dict(tensors(method.state_dict()))
    assert all(torch.equal(after[place], leaf) for place, leaf in tensors(before))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evolution", "pes"])
def test_learns_from_values_alone(kit, name):
    """The final validation loss of quadratics falls below that of the untrained LSTM."""
    options = {"horizon": 20, "unroll": 10, "valid_problems": 16, "hidden": 4, "layers": 1}
    method = kit.learner(kit.Quadratics(), name, {"pairs": 4, "deviation": 0.05}, **options)
    before = method.evaluate("valid")["valid/final_loss"]
    for index in range(60):
        method.step(index)
    assert method.evaluate("valid")["valid/final_loss"] < 0.9 * before


def test_divergence_counts_as_no_progress_and_is_told():
    curve = torch.tensor([[2.0, 4.0], [1.0, torch.inf], [0.5, torch.nan]])
    told = summary("test", curve)
    assert told["test/final_loss"] == (0.5 + 4.0) / 2
    assert told["test/diverged"] == 0.5
    assert told["test/mean_log_loss"].isfinite()
