"""The method in the loop's hands: resume, curriculum, evaluation, what it leaves, what it refuses."""

import io
import json

import pytest
import torch

from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.learned_optimizers.black_box.training import BlackBoxOptimizer
from metalearn.registry import UserError


def _saved(state):
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


DNC = pytest.param(["controller=dnc", "workers=2"], marks=pytest.mark.slow)


@pytest.mark.parametrize("overrides", [["loss=ei"], DNC])
def test_resume_is_bit_exact(box, overrides):
    """Also inside the growth of the horizon."""
    whole, first, second = (box.method(box.task(), *overrides) for _ in range(3))
    losses = [whole.step(index)["train/loss"] for index in range(6)]
    for index in range(3):
        first.step(index)
    first.evaluate("valid")
    second.load_state_dict(_saved(first.state_dict()))
    resumed = [second.step(index)["train/loss"] for index in range(3, 6)]
    assert torch.equal(torch.stack(resumed), torch.stack(losses[3:]))
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    assert second.evaluate("valid") == whole.evaluate("valid")


def test_horizon_grows(box):
    method = box.method(box.task(), "horizon=10", "first_horizon=2", "full_horizon_after=4")
    assert [method.horizon(index) for index in range(6)] == [2, 4, 6, 8, 10, 10]
    assert [len(method.loss(index)[1]) for index in (0, 2, 4)] == [2, 6, 10]
    at_once = box.method(box.task(), "horizon=10", "full_horizon_after=0")
    assert at_once.horizon(0) == 10


def test_evaluation_is_fixed_and_by_the_best_value(box):
    method = box.method(box.task())
    first = method.evaluate("test")
    assert first == method.evaluate("test")
    assert first["test/best_value"] != method.evaluate("valid")["valid/best_value"]
    task, values = method.task, []
    for index, count in ((0, 4), (1, 2)):
        values.append(method.search.run(method.meta, task.batch("test", index), 5).values[:, :count])
    best = torch.cat(values, 1).amin(0)
    torch.testing.assert_close(first["test/best_value"], best.mean())
    torch.testing.assert_close(first["test/best_value_interval"], 1.959964 * best.std() / 6**0.5)


def test_clip_limits_the_gradient(box):
    method = box.method(box.task(), "clip=1e-3", "loss=sum")
    told = method.step(0)["train/gradient_norm"]
    length = torch.stack([leaf.grad.square().sum() for leaf in method.meta.values()]).sum().sqrt()
    assert told > 1e-3
    assert length.item() == pytest.approx(1e-3, rel=1e-2)


def trained(box, folder, *overrides):
    method = box.method(box.task(), *overrides)
    method.step(0)
    method.evaluate("test")
    (folder / "artifacts").mkdir()
    method.artifacts(folder / "artifacts")
    return method


def test_artifacts(box, tmp_path):
    method = trained(box, tmp_path)
    curves = json.loads((tmp_path / "artifacts" / "trajectories.json").read_text())
    assert curves["x"] == [1, 2, 3, 4, 5]
    (series,) = curves["series"].values()
    assert series == sorted(series, reverse=True)
    assert series[-1] == pytest.approx(method.evaluate("test")["test/best_value"].item())
    summary = json.loads((tmp_path / "artifacts" / "summary.json").read_text())
    assert 0 < summary["seconds_per_100_queries"] < 5


@pytest.mark.parametrize("place", ["", pytest.param("artifacts", marks=pytest.mark.slow)])
def test_a_stored_network_is_tested_as_it_is(box, tmp_path, place):
    """On its own functions and on a benchmark; its steps change nothing."""
    method = trained(box, tmp_path)
    path = f"optimizer={tmp_path / place}"
    again = box.method(box.task(), path, steps=1)
    again.step(0)
    assert all(torch.equal(again.meta[key], leaf) for key, leaf in method.meta.items())
    assert again.evaluate("test") == method.evaluate("test")
    branin = box.method(box.task("branin"), path, steps=1)
    assert branin.evaluate("test")["test/best_value"].isfinite()


def test_a_stored_network_must_fit(box, tmp_path):
    trained(box, tmp_path)
    path = f"optimizer={tmp_path}"
    with pytest.raises(UserError, match=r"is of 2 dimensions, the task has 3; .* choose a task"):
        box.method(box.task("hartmann3"), path, steps=1)
    with pytest.raises(UserError, match=r"another network than this run's; set method.hidden=4"):
        box.method(box.task(), path, "hidden=8", steps=1)
    with pytest.raises(UserError, match=r"set method.workers=1"):
        box.method(box.task(), path, "workers=2", steps=1)
    with pytest.raises(UserError, match=r"train.steps: got 10, .* set train.steps=1"):
        box.method(box.task(), path)
    with pytest.raises(UserError, match=r"nowhere has no black_box_optimizer.json"):
        box.method(box.task(), "optimizer=nowhere", steps=1)


def test_mistakes_are_explained(box):
    with pytest.raises(UserError, match=r"task quadratic: its functions cannot be asked"):
        box.method(box.task("quadratic"))
    with pytest.raises(UserError, match=r"method.loss: got ei, .* functions of task branin"):
        box.method(box.task("branin"), "loss=ei")
    with pytest.raises(UserError, match=r"method.horizon: got 30, .* asked 20 times"):
        box.method(box.task(), "horizon=30")
    with pytest.raises(UserError, match=r"method.workers: got 6, must be at most method.horizon, 5"):
        box.method(box.task(), "workers=6")
    options = box.options("method", "black_box_optimizer", "horizon=5", "first_horizon=2")
    context = box.context(box.task())._replace(hypergradient=Unrolled(UnrolledOptions("unrolled", False)))
    with pytest.raises(UserError, match="set hypergradient=none"):
        BlackBoxOptimizer(options, context)


def test_bf16_runs(box):
    options = box.options("method", "black_box_optimizer", "horizon=4", "first_horizon=2", "hidden=8")
    method = BlackBoxOptimizer(options, box.context(box.task(), precision="bf16"))
    assert method.step(0)["train/loss"].isfinite()
    assert method.search.run(method.meta, method.task.batch("train", 0), 3).values.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["loss=oi"], ["loss=ei"], ["loss=sum", "workers=2"]])
def test_learns(box, overrides):
    """In one dimension, ten queries find more than an untrained network's do, which hardly move."""
    task = box.task("gaussian_process", "dimension=1", "batch=64")
    settings = ["horizon=10", "hidden=32", "learning_rate=0.01", "valid_functions=256", *overrides]
    method = box.method(task, *settings)
    before = method.evaluate("valid")["valid/best_value"]
    for index in range(100):
        method.step(index)
    assert method.evaluate("valid")["valid/best_value"] < before - 0.5
