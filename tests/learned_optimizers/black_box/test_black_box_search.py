"""Trajectories: one query after another by hand, and several workers against a queue of events."""

import heapq

import pytest
import torch

from metalearn.learned_optimizers.black_box.losses import expected_improvement
from metalearn.task import Batch

HORIZON = 9


class Recorder:
    """A controller that says something else at every step and remembers what it was told."""

    def __init__(self, search):
        self.inputs, self.outputs, self.told = search.controller.inputs, search.controller.outputs, []
        self.state = lambda batch, like: {"step": like.new_zeros(batch, 1)}

    def apply(self, meta, features, state):  # noqa: ARG002
        self.told.append(features)
        step = state["step"] + 1
        seen = features.sum(1, keepdim=True)
        return torch.cat([torch.sin(3 * step + seen), torch.cos(5 * step - seen)], 1), {"step": step}


def recorded(box, task, *overrides):
    """A search with a recorder for its controller."""
    search, meta, _ = box.search(task, *overrides)
    search.controller = Recorder(search)
    search.step = search.controller.apply
    return search, meta


def test_one_after_the_other(box):
    """eq. 1, zeros first: the controller sees its last point and the answer to it."""
    task = box.task()
    search, meta, _ = box.search(task)
    batch = task.batch("train", 0)
    found = search.run(meta, batch, 4)
    functions, state = task.begin(batch), search.controller.state(4, meta["lstm.bias"])
    features = torch.zeros(4, 3, dtype=torch.float64)
    for step in range(4):
        output, state = search.controller.apply(meta, features, state)
        point = torch.sigmoid(output)
        value, functions = task.query(functions, point)
        torch.testing.assert_close(found.points[step], point)
        torch.testing.assert_close(found.values[step], value)
        features = torch.cat([point, value.unsqueeze(1)], 1)


def simulated(task, runtimes, workers, row):
    """Event by event for function number `row`, a queue of finishing times for its own."""
    batch = task.batch("train", 0)
    functions = task.begin(Batch(batch.x[row : row + 1], batch.y[row : row + 1], batch.key))
    clock, queue, step, told, values = 0.0, [], 0, [], []

    def propose(features):
        nonlocal step
        told.append(features)
        step += 1
        seen = sum(features)
        output = torch.tensor([[3.0 * step + seen, 5.0 * step - seen]], dtype=torch.float64)
        point = torch.sigmoid(torch.stack([output[0, 0].sin(), output[0, 1].cos()])).unsqueeze(0)
        heapq.heappush(queue, (clock + runtimes[step - 1].item(), step, point))

    for _ in range(workers):
        propose([0.0] * 4)
    while queue:
        clock, _, point = heapq.heappop(queue)
        value, functions = task.query(functions, point)
        values.append(value.item())
        if step < len(runtimes):
            propose([*point[0].tolist(), value.item(), 1.0])
    return told, values


@pytest.mark.parametrize("spread", [0.0, 0.9])
@pytest.mark.parametrize("workers", [2, 3])
def test_answers_come_in_the_order_of_completion(box, workers, spread):
    task = box.task()
    search, meta = recorded(box, task, f"workers={workers}", f"runtime_spread={spread}")
    batch = task.batch("train", 0)
    found, runtimes = search.run(meta, batch, HORIZON), search.runtimes(batch, HORIZON)
    for row in range(4):
        told, values = simulated(task, runtimes[row], workers, row)
        ours = torch.stack([features[row] for features in search.controller.told])
        torch.testing.assert_close(ours, torch.tensor(told, dtype=torch.float64))
        torch.testing.assert_close(found.values[:, row], torch.tensor(values, dtype=torch.float64))
    assert len(search.controller.told) == HORIZON
    assert ours[:workers].abs().sum() == 0
    assert (ours[workers:, 3] == 1).all()


def test_runtimes_are_uniform_around_one(box):
    task = box.task("gaussian_process", "batch=300")
    search, _, _ = box.search(task, "workers=2", "runtime_spread=0.4")
    drawn = search.runtimes(task.batch("train", 0), 50)
    assert 0.6 <= drawn.min() < 0.601
    assert 1.399 < drawn.max() <= 1.4
    assert torch.equal(drawn, search.runtimes(task.batch("train", 0), 50))
    assert not torch.equal(drawn, search.runtimes(task.batch("train", 1), 50))


@pytest.mark.parametrize("workers", [1, 3])
def test_expected_improvements_know_what_was_answered_before(box, workers):
    """None for the first queries; then that of the posterior at the moment of asking, here in order."""
    task = box.task()
    search, meta, _ = box.search(task, f"workers={workers}", "runtime_spread=0")
    found = search.run(meta, task.batch("train", 0), 6, expected=True)
    assert (found.improvements[:workers] == 0).all()
    functions, best = task.begin(task.batch("train", 0)), None
    for made in range(workers, 6):
        value, functions = task.query(functions, found.points[made - workers])
        best = value if best is None else torch.minimum(best, value)
        mean, deviation = task.predict(functions, found.points[made].unsqueeze(1))
        expected = expected_improvement(mean[:, 0], deviation[:, 0], best)
        torch.testing.assert_close(found.improvements[made], expected)
    assert found.improvements.shape == (6, 4)


def test_points_are_in_the_box(box):
    task = box.task()
    for squash in ("sigmoid", "clip"):
        search, meta, _ = box.search(task, f"squash={squash}")
        points = search.run({key: 30 * leaf for key, leaf in meta.items()}, task.batch("train", 0), 6).points
        assert 0 <= points.min() <= points.max() <= 1
        zeros = search.run({key: 0 * leaf for key, leaf in meta.items()}, task.batch("train", 0), 2).points
        assert (zeros == 0.5).all()


def test_a_function_of_a_benchmark_too(box):
    search, meta, _ = box.search(box.task("hartmann3"))
    found = search.run(meta, box.task("hartmann3").batch("test", 0), 4)
    assert found.points.shape == (4, 4, 3)
    assert found.values.isfinite().all()
