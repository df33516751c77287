"""learn2learn's own MAML inside our loop is ours."""

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _learn2learn():
    pytest.importorskip("learn2learn")


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("task", ["waves", "pictures"])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_meta_gradients_are_equal(kit, algorithm, task, steps):
    if algorithm == "fomaml" and steps == 0:
        pytest.skip("joint training is maml's")
    fields = {"algorithm": algorithm, "inner_steps": steps}
    ours = kit.gradient_of(kit.make(kit.tasks[task](), **fields))
    theirs = kit.make(kit.tasks[task](), backend="learn2learn", vectorise=False, **fields)
    torch.testing.assert_close(kit.gradient_of(theirs), ours, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_training_ends_at_the_same_parameters(kit, algorithm):
    fields = {"algorithm": algorithm, "optimizer": "adam", "learning_rate": 0.01}
    ours, theirs = kit.make(**fields), kit.make(backend="learn2learn", vectorise=False, **fields)
    for index in range(30):
        rows = ours.step(index), theirs.step(index)
        torch.testing.assert_close(*rows, rtol=1e-6, atol=1e-9)
    assert rows[0].keys() == rows[1].keys()
    torch.testing.assert_close(dict(theirs.meta), dict(ours.meta), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(theirs.evaluate("test"), ours.evaluate("test"), rtol=1e-6, atol=1e-8)
    again = kit.make(**fields)
    assert not torch.allclose(again.meta["init/layers.1.weight"], ours.meta["init/layers.1.weight"])
