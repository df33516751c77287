"""The gradient of each loss against central differences of the whole trajectory, in float64."""

import pytest
import torch

from metalearn.learned_optimizers.black_box.losses import trajectory_loss
from metalearn.rng import generator
from metalearn.tree import gradient, require_grad

CASES = [
    ("lstm", "sum", True, 1),
    ("lstm", "final", True, 1),
    ("lstm", "ei", True, 1),
    ("lstm", "oi", True, 1),
    ("lstm", "oi", False, 1),
    ("lstm", "ei", True, 3),
    ("lstm", "sum", True, 2),
    ("dnc", "oi", False, 2),
    pytest.param("dnc", "ei", True, 1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("controller", "loss", "detach", "workers"), CASES)
def test_agrees_with_central_differences(box, controller, loss, detach, workers):
    """Along two random directions; detached incumbents are held where they were."""
    task = box.task("gaussian_process", "jitter=0.001")
    search, meta, _ = box.search(task, f"controller={controller}", f"workers={workers}")
    meta = {key: 2 * leaf for key, leaf in meta.items()}
    batch = task.batch("train", 1)
    held = search.run(meta, batch, 5).values.cummin(0).values[:-1]

    def value(weights, hold):
        seen = search.run(weights, batch, 5, expected=loss == "ei")
        if loss == "oi" and hold:
            return (seen.values[1:] - held).clamp_max(0).sum(0).mean() / 5
        return trajectory_loss(loss, seen.values, seen.improvements, detach)

    leaves = require_grad(meta)
    grad = gradient(value(leaves, False), leaves)
    assert all(leaf.abs().sum() > 0 for leaf in grad.values())
    rng, step = generator("direction"), 1e-6
    for _ in range(2):
        way = {key: torch.randn(leaf.shape, generator=rng).double() for key, leaf in meta.items()}
        ends = [value({key: meta[key] + sign * step * way[key] for key in meta}, detach) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        found = sum((grad[key] * way[key]).sum() for key in meta)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-8)
