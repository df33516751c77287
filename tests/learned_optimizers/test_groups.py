"""Which tensors are treated alike, and an LSTM for each kind of them."""

import torch

from metalearn.learned_optimizers.groups import by_code, by_kind, by_size, gathered, scattered
from metalearn.learned_optimizers.layout import Layout
from metalearn.rng import generator

CPU = torch.device("cpu")
CIFAR = {}  # the authors' convnet: each convolution and the hidden layer with a bias and a normalising shift
for number, channels in enumerate((3, 16, 16)):
    CIFAR |= {f"conv{number}.weight": (16, channels, 5, 5), f"conv{number}.bias": (16,), f"bn{number}": (16,)}
CIFAR |= {"fc.weight": (32, 256), "fc.bias": (32,), "bn": (32,), "out.weight": (10, 32), "out.bias": (10,)}
SMALL = Layout({"k": (2, 1, 2, 2), "kb": (2,), "w": (3, 2), "wb": (3,), "k2": (1, 1, 2, 2)}, CPU)
MEMORY = ("hidden", "cell")


def _count(layout, groups, wanted):
    return sum(size for size, group in zip(layout.sizes, groups, strict=True) if group == wanted)


def test_the_authors_assignment_has_their_counts():
    """Sheet, section 4.3: 14,000 coordinates in the kernels and 8,682 in all else."""
    layout = Layout(CIFAR, CPU)
    assert _count(layout, by_code(layout), "conv") == 14000
    assert _count(layout, by_code(layout), "fc") == 8682


def test_kinds_take_the_vectors_after_a_layer_with_it():
    layout = Layout(CIFAR, CPU)
    assert _count(layout, by_kind(layout), "conv") == 14000 + 3 * 32
    assert by_kind(layout)[-5:] == ["fc"] * 5
    assert by_kind(Layout({"scale": (4,), "kernel": (4, 1, 3, 3)}, CPU)) == ["fc", "conv"]


def test_sizes():
    layout = Layout({"lone": (), "b": (4,), "w": (2, 2), "k1": (1, 2, 3), "k2": (1, 1, 2, 2)}, CPU)
    assert by_size(layout) == ["vector", "vector", "matrix", "kernel", "kernel"]


def test_apart_and_together_again():
    flat = torch.arange(2 * SMALL.coordinates).view(2, -1)
    groups = by_kind(SMALL)
    parts = gathered(flat, SMALL, groups)
    assert parts["conv"].shape == (2, 14)
    assert torch.equal(parts["fc"][0], torch.arange(10, 19))
    assert torch.equal(scattered(parts, SMALL, groups), flat)


def test_two_lstms_of_equal_weights_are_one(kit):
    single, double = (kit.build_rule("lstm", groups=groups, hidden=4) for groups in ("single", "kind"))
    meta = kit.moved(single)
    both = {f"{group}.{key}": leaf for group in ("conv", "fc") for key, leaf in meta.items()}
    assert {key: leaf.shape for key, leaf in double.init(generator(0)).items()} == {
        key: leaf.shape for key, leaf in both.items()
    }
    theta = torch.randn(3, SMALL.coordinates, generator=generator(1)).double()
    gradients = torch.randn(4, 3, SMALL.coordinates, generator=generator(2)).double()
    expected = kit.follow(single, meta, theta, gradients, SMALL)
    found = kit.follow(double, both, theta, gradients, SMALL)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-12, atol=0)
    assert found.slots["conv.hidden.0"].shape == (3, 14, 4)


def test_each_lstm_moves_its_own_tensors_only(kit):
    rule = kit.build_rule("lstm", groups="code", hidden=4)
    meta, theta = kit.moved(rule), torch.zeros(1, SMALL.coordinates).double()
    gradients = torch.randn(2, 1, SMALL.coordinates, generator=generator(2)).double()
    changed = meta | {"conv.linear.bias": meta["conv.linear.bias"] + 1}
    before, after = (kit.follow(rule, each, theta, gradients, SMALL).params for each in (meta, changed))
    moved = SMALL.unflatten((before["theta"] != after["theta"]).double())
    assert {name for name, leaf in moved.items() if leaf.all()} == {"k", "k2"}
    assert not any(moved[name].any() for name in ("kb", "w", "wb"))


def test_two_draws_differ_and_both_are_there_without_convolutions(kit):
    rule = kit.build_rule("lstm", groups="kind", hidden=4, averaging=2)
    meta = rule.init(generator(0))
    assert not torch.equal(meta["conv.lstm.0.weight"], meta["fc.lstm.0.weight"])
    layout, theta = Layout({"w": (3, 2), "b": (3,)}, CPU), torch.zeros(2, 9)
    after = kit.follow(rule, meta, theta, torch.ones(2, 2, 9), layout)
    assert after.params["theta"].isfinite().all()
    assert not any(name.startswith("conv") for name in after.slots)
