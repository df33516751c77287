"""conv4 against torch's own layers, counts by hand and the peer's network."""

from typing import Any

import pytest
import torch
from torch import nn

from metalearn.maml.config import Conv4Options
from metalearn.maml.networks import Conv4
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import count


def spec(shape=(1, 28, 28), kind: Any = "few_shot", outputs=5):
    return TaskSpec("images", kind, shape, outputs, {}, "error", "", "", "", "", support=5)


def conv4(downsampling="stride", channels=64, **fields):
    return Conv4(Conv4Options("conv4", channels, downsampling), spec(**fields))


def reference(channels, downsampling, inputs, outputs, pixels):
    """The same network from torch.nn alone."""
    stride, layers = 2 if downsampling == "stride" else 1, []
    for size in (inputs, channels, channels, channels):
        layers += [nn.Conv2d(size, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if downsampling == "pool" else []
    last = nn.AdaptiveAvgPool2d(1) if downsampling == "stride" else nn.Identity()
    return nn.Sequential(*layers, last, nn.Flatten(), nn.Linear(channels * pixels, outputs))


def test_counts_the_parameters_of_omniglot_by_hand():
    """(9 * 1 + 1) 64 + 3 (9 * 64 + 1) 64 of convolutions, 4 * 2 * 64 of norms, (64 + 1) 5 of the head."""
    assert count(conv4().parameters()) == 640 + 3 * 36928 + 512 + 325 == 112261


def test_counts_the_parameters_of_mini_imagenet_by_hand():
    """32 channels of 84x84 colours leave 5x5 pixels after four poolings."""
    network = conv4("pool", 32, shape=(3, 84, 84))
    assert count(network.parameters()) == 28 * 32 + 3 * 289 * 32 + 4 * 2 * 32 + (32 * 25 + 1) * 5 == 32901


@pytest.mark.slow
def test_counts_as_learn2learns_network():
    vision = pytest.importorskip("learn2learn.vision.models")
    assert count(conv4().parameters()) == count(
        vision.OmniglotCNN(output_size=5, hidden_size=64).parameters()
    )


@pytest.mark.parametrize(
    ("downsampling", "shape", "pixels"),
    [("stride", (1, 28, 28), 1), ("stride", (3, 9, 17), 1), ("pool", (3, 33, 16), 2)],
)
def test_computes_as_torchs_layers(downsampling, shape, pixels):
    network = conv4(downsampling, 8, shape=shape).double()
    theirs = reference(8, downsampling, shape[0], 5, pixels).double()
    own = list(network.parameters())
    with torch.no_grad():
        for mine, other in zip(own, theirs.parameters(), strict=True):
            other.copy_(mine.normal_())
    x = torch.randn(6, *shape, dtype=torch.float64)

    ours, expected = network(x).logits, theirs(x)

    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(expected.square().sum(), list(theirs.parameters()))
    torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), own), wanted, rtol=1e-9, atol=1e-9)


def test_uses_the_batch_at_hand_in_evaluation_too():
    network, x = conv4(channels=4), torch.randn(6, 1, 28, 28)
    trained = network.train()(x).logits
    assert not list(network.buffers())
    torch.testing.assert_close(network.eval()(x).logits, trained, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["few_shot", "classification"])
def test_takes_images_of_both_kinds(kind):
    assert conv4(channels=4, kind=kind)(torch.randn(3, 1, 28, 28)).logits.shape == (3, 5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shape": (2,)}, "must be a few_shot or classification of images"),
        ({"kind": "language_model"}, "is a language_model"),
        ({"shape": (1, 8, 28), "downsampling": "pool"}, "images has 8x28; set network.downsampling=stride"),
    ],
)
def test_refuses_what_is_no_image(fields, words):
    with pytest.raises(UserError, match=words):
        conv4(**fields)
