"""Which part of a memory is whose, where it is kept apart by groups of tensors."""

import pytest
import torch

from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer
from metalearn.rng import generator

SHAPES = ((2, 1, 2, 2), (2,), (3, 9), (3,), (3,))
PARTS = {  # of each slot of the two LSTMs: coordinates of the tensors without a gradient, of all
    "kind": {"conv": (slice(0, 8), 10), "fc": (slice(30, 33), 33)},
    "code": {"conv": (slice(0, 8), 8), "fc": (slice(32, 35), 35)},
}


@pytest.mark.parametrize("groups", PARTS)
def test_a_tensor_without_gradient_keeps_its_memory_in_its_group(kit, groups):
    """A convolution's kernel and the last bias; all others move, and so does their memory."""
    rule = kit.build_rule("lstm", groups=groups, hidden=3)
    tensors = [torch.ones(shape, requires_grad=True) for shape in SHAPES]
    optimizer, rng = LearnedOptimizer(tensors, rule, kit.moved(rule, torch.float32)), generator("slots")
    for step in range(2):
        for tensor in tensors:
            tensor.grad = torch.randn(tensor.shape, generator=rng)
        if step:
            tensors[0].grad = tensors[-1].grad = None
        places = [tensor.detach().clone() for tensor in tensors]
        before = optimizer.state[tensors[0]].get("slots", {})
        optimizer.step()
    still = [torch.equal(tensor, place) for tensor, place in zip(tensors, places, strict=True)]
    assert still == [True, False, False, False, True]
    for name, leaf in optimizer.state[tensors[0]]["slots"].items():
        absent, length = PARTS[groups][name.partition(".")[0]]
        same = (leaf == before[name]).all(2)[0]
        assert len(same) == length
        assert same[absent].all()
        assert same.sum() == len(same[absent])
