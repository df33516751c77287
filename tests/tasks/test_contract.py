"""What every registered task promises; a new task is tested by being registered."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metalearn.options  # noqa: F401
import tasks  # noqa: F401
from metalearn import registry
from metalearn.task import Batch

EMBEDDED = [
    "branin",
    "digits",
    "gaussian_process",
    "goldstein_price",
    "hartmann3",
    "hartmann6",
    "lasso",
    "logistic_regression",
    "neural_art",
    "pen_strokes",
    "phrases",
    "python_docs",
    "quadratic",
    "rastrigin",
    "rosenbrock",
    "sinusoid",
    "two_moons",
]
SPLITS = ("train", "valid", "test", "search_train", "search_valid")
SLOW = {"cifar10"}  # decoding takes 10 s
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in registry.names("task")
]


@pytest.fixture
def task(make, request):
    return make(request.param)


every_task = pytest.mark.parametrize("task", NAMES, indirect=True)


def output_for(task, batch):
    """Random scores in the shape that the task's kind asks for."""
    shape = {"language_model": (*batch.x.shape, task.spec.outputs)}
    shape |= dict.fromkeys(("classification", "function"), (len(batch.x), task.spec.outputs))
    shape |= dict.fromkeys(
        ("few_shot", "handwriting", "translation"), (*batch.y.shape[:2], task.spec.outputs)
    )
    return torch.randn(shape[task.spec.kind], generator=torch.Generator().manual_seed(0))


def check_episodes(task, batch, size):
    """Shapes and types of a meta-batch; with classes, each is shown equally often in either part."""
    spec, options = task.spec, task.options
    classes = 1 if batch.y.is_floating_point() else spec.outputs
    examples = classes * (options.shots + options.queries)
    assert spec.support == classes * options.shots
    assert (batch.x.shape, batch.x.dtype) == ((size, examples, *spec.input_shape), torch.float32)
    if batch.y.is_floating_point():
        assert (batch.y.shape, batch.y.dtype) == ((size, examples, spec.outputs), torch.float32)
        return
    assert (batch.y.shape, batch.y.dtype) == ((size, examples), torch.int64)
    for row in batch.y:
        assert row[: spec.support].bincount().tolist() == [options.shots] * classes
        assert row[spec.support :].bincount().tolist() == [options.queries] * classes


@every_task
def test_says_what_it_is(task):
    spec = task.spec
    assert re.fullmatch("[0-9a-f]{64}", spec.digest)
    assert set(spec.sizes) == set(SPLITS)
    assert all(size > 0 for size in spec.sizes.values())
    for field in dataclasses.fields(spec):
        assert getattr(spec, field.name) != "", field.name
    assert spec.name in registry.names("task")


@every_task
@pytest.mark.parametrize("split", SPLITS)
def test_batches_have_the_shape_of_their_kind(task, split):
    batch = task.batch(split, 3)
    size = task.options.batch
    if task.spec.kind == "classification":
        assert batch.x.shape == (size, *task.spec.input_shape)
        assert batch.x.dtype == torch.float32
        assert (batch.y.shape, batch.y.dtype) == ((size,), torch.int64)
        assert 0 <= int(batch.y.min()) <= int(batch.y.max()) < task.spec.outputs
    elif task.spec.kind == "language_model":
        assert batch.x.shape == batch.y.shape == (size, task.options.time)
        assert batch.x.dtype == batch.y.dtype == torch.int64
        assert 0 <= int(batch.x.min()) <= int(batch.x.max()) < task.spec.outputs
    elif task.spec.kind == "few_shot":
        check_episodes(task, batch, size)
    elif task.spec.kind == "translation":
        assert batch.x.shape == (size, 2, batch.y.shape[1])
        assert (len(batch.y), batch.x.dtype, batch.y.dtype) == (size, torch.int64, torch.int64)
        assert 0 <= int(batch.x.min()) <= int(batch.x.max()) < task.spec.outputs
    elif task.spec.kind == "handwriting":
        assert batch.x.shape == batch.y.shape == (size, batch.x.shape[1], 3)
        assert batch.x.dtype == batch.y.dtype == torch.float32
        assert batch.y[:, :2].isfinite().all()
    else:
        assert len(batch.x) == len(batch.y) == size
    assert batch.x.float().isfinite().all()
    assert split in batch.key


@every_task
def test_batch_is_a_function_of_its_key(task, make_fresh):
    """Another object, asked in another order, gives the same batches; another index gives another."""
    other = make_fresh(task.spec.name)
    last = task.batches("train") + 5
    backwards = {index: other.batch("train", index) for index in (last, 4, 1, 0)}
    for index, expected in sorted(backwards.items()):
        batch = task.batch("train", index)
        assert torch.equal(batch.x, expected.x)
        torch.testing.assert_close(batch.y, expected.y, rtol=0, atol=0, equal_nan=True)
        assert batch.key == expected.key
    assert not torch.equal(backwards[0].x, backwards[1].x)
    assert len({batch.key for batch in backwards.values()}) == 4


@every_task
def test_seeds_change_the_stream_but_not_the_data(task, make_fresh):
    other = make_fresh(task.spec.name, seed=1)
    assert task.batch("train", 0).key != other.batch("train", 0).key
    assert other.spec == task.spec
    if task.spec.kind != "language_model":  # a text is read in its own order
        assert not torch.equal(task.batch("train", 0).x, other.batch("train", 0).x)
    if task.spec.kind != "function":  # which is fresh by seed in every split
        for split in ("valid", "test"):
            assert torch.equal(next(task.sweep(split)).x, next(other.sweep(split)).x)


@every_task
def test_sweep_is_fixed_and_has_the_size_of_the_split(task):
    if task.spec.kind == "language_model":
        pytest.skip("test_text.py counts symbols")
    for split in ("valid", "test", "search_valid"):
        first, second = list(task.sweep(split)), list(task.sweep(split))
        size = task.options.evaluated if task.spec.kind == "few_shot" else task.spec.sizes[split]
        assert sum(len(batch.y) for batch in first) == size
        assert all(torch.equal(a.x, b.x) and a.key == b.key for a, b in zip(first, second, strict=True))


@every_task
def test_loss_is_differentiable_and_among_the_metrics(task):
    batch = task.batch("train", 0)
    output = output_for(task, batch).requires_grad_()
    loss, metrics = task.loss(output, batch), task.metrics(output, batch)
    (grad,) = torch.autograd.grad(loss, output)
    assert loss.shape == ()
    assert grad.abs().sum() > 0
    each = (
        (~batch.y[..., 2].isnan()).sum() / len(batch.y) if task.spec.kind == "handwriting" else 1
    )  # points a line
    torch.testing.assert_close(metrics["loss"], each * loss.detach())
    assert not any(value.requires_grad for value in metrics.values())
    assert task.spec.metric in {*metrics, "perplexity", "bleu"}


@every_task
def test_one_task_of_a_meta_batch_is_scored_alone(task):
    """Tasks are of one size, so that the mean over them is the loss of all."""
    if task.spec.kind != "few_shot":
        pytest.skip("has no meta-batches")
    batch = task.batch("train", 0)
    output = output_for(task, batch)
    alone = [Batch(x, y, batch.key) for x, y in zip(batch.x, batch.y, strict=True)]
    losses = [task.loss(scores, one) for scores, one in zip(output, alone, strict=True)]
    torch.testing.assert_close(torch.stack(losses).mean(), task.loss(output, batch))
    metrics = [task.metrics(scores, one) for scores, one in zip(output, alone, strict=True)]
    for quantity, value in task.metrics(output, batch).items():
        torch.testing.assert_close(torch.stack([each[quantity] for each in metrics]).mean(), value)


def digest_of_batches(task):
    """One digest over batches of all splits."""
    total = hashlib.sha256(task.spec.digest.encode())
    for split in SPLITS:
        for index in (0, 1, 57):
            batch = task.batch(split, index)
            total.update(batch.x.numpy().tobytes() + batch.y.numpy().tobytes() + repr(batch.key).encode())
        total.update(next(task.sweep(split)).x.numpy().tobytes())
    return total.hexdigest()


SCRIPT = """
import json, pathlib, sys, torch
import tasks
from metalearn import registry
sys.path.insert(0, sys.argv[1])
import test_contract
for values in json.loads(sys.argv[2]):
    options = registry.entry("task", values["name"]).options(**values)
    task = registry.build("task", options, seed=0, data_dir=pathlib.Path("none"), download=False,
                          device=torch.device("cpu"))
    print(values["name"], test_contract.digest_of_batches(task))
"""


@pytest.mark.slow
def test_another_process_with_another_hash_seed_draws_the_same(make):
    built = [make(name) for name in EMBEDDED]
    values = json.dumps([dataclasses.asdict(task.options) for task in built])
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), values],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [f"{task.spec.name} {digest_of_batches(task)}" for task in built]
    assert ran.stdout.splitlines() == expected
