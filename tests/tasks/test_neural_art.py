"""Neural art: its three terms by hand, its gradient by differences, its pictures by split, VGG's weights."""

import dataclasses
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import grad_and_value, vmap
from torchvision.models.vgg import cfgs, make_layers

from metalearn import registry
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch
from tasks import pictures, vgg
from tasks.neural_art import gram, style_loss, total_variation

SPLITS = ("train", "valid", "test", "search_train", "search_valid")
NOWHERE = Path("none")


@pytest.fixture
def art(options):
    """art(**changes, data_dir=...): the small task, with other options."""

    def build(data_dir=NOWHERE, **changes):
        return registry.build(
            "task",
            dataclasses.replace(options("neural_art"), **changes),
            seed=0,
            data_dir=data_dir,
            download=False,
            device=torch.device("cpu"),
        )

    return build


def test_gram_and_style_loss_by_hand():
    """Two channels of two places, [[1 2] [3 4]]: G = [[5 11] [11 25]], and 1/(4 2^2 2^2) sum (G - A)^2."""
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]], dtype=torch.float64)
    assert gram(features).tolist() == [[[5.0, 11.0], [11.0, 25.0]]]
    wanted = torch.tensor([[[4.0, 9.0], [9.0, 25.0]]], dtype=torch.float64)
    assert style_loss(features, wanted).tolist() == [(1 + 4 + 4) / 64]


def test_total_variation_by_hand():
    """[[0 1] [3 7]]: to the right 1 and 16, downwards 9 and 36."""
    image = torch.tensor([[0.0, 1.0], [3.0, 7.0]]).expand(1, 3, 2, 2)
    assert total_variation(image).tolist() == [3 * (1 + 16 + 9 + 36)]
    assert total_variation(torch.full((2, 3, 4, 4), 5.0)).tolist() == [0, 0]


def test_terms_are_weighted_and_vanish_where_they_should(art):
    """At its own picture an image has its content; the halves of the content's formula and of the weights."""
    task = art()
    batch = task.batch("train", 0)
    nothing = torch.zeros(3, task.spec.outputs)
    here = task.metrics(nothing, batch)
    assert here["content"] == 0
    torch.testing.assert_close(here["variation"], 0.1 * total_variation(batch.x).mean())
    shifted = Batch(batch.x, batch.y + 2, batch.key)
    assert task.metrics(nothing, shifted)["content"] == pytest.approx(batch.y.shape[1] * 4 / 2)
    weighted = art(alpha=3.0, beta=500.0, gamma=0.0).metrics(nothing, shifted)
    assert weighted["content"] == pytest.approx(3 * batch.y.shape[1] * 4 / 2)
    torch.testing.assert_close(weighted["style"], here["style"] / 2)
    assert weighted["variation"] == 0


def test_the_style_image_has_its_own_style(art):
    """And each layer weighs the same: half of the loss is each of two layers' alone."""
    task = art(origin="noise")
    painting = task._normalised(
        pictures.middle(pictures.style("flower", NOWHERE).by_split["train"][0], 16)[None]
    )
    empty = Batch(painting, task.batch("train", 0).y[:1], ())
    assert task.metrics(painting.flatten(1), empty)["style"] == pytest.approx(0, abs=1e-6)
    theta = torch.randn(1, task.spec.outputs, generator=generator("theta"))
    alone = [
        art(origin="noise", style_layers=[name]).metrics(theta, empty)["style"]
        for name in ("conv1_1", "conv2_1")
    ]
    torch.testing.assert_close(task.metrics(theta, empty)["style"], sum(alone) / 2)


def in_float64(task, batch):
    task.weights = {name: (w.double(), b.double()) for name, (w, b) in task.weights.items()}
    task.grams = {name: found.double() for name, found in task.grams.items()}
    return Batch(batch.x.double(), batch.y.double(), batch.key)


@pytest.mark.parametrize(("origin", "pooling"), [("content", "max"), ("noise", "average")])
def test_gradient_agrees_with_central_differences(art, origin, pooling):
    task = art(origin=origin, pooling=pooling)
    batch = in_float64(task, task.batch("train", 0))
    theta = torch.randn(3, task.spec.outputs, dtype=torch.float64, generator=generator("theta"))
    (grad,) = torch.autograd.grad(task.loss(theta.requires_grad_(), batch), theta)
    theta, radius = theta.detach(), 1e-6
    for image, place in ((0, 5), (1, 300), (2, 767)):
        ends = [theta.clone(), theta.clone()]
        for end, sign in zip(ends, (1, -1), strict=True):
            end[image, place] += sign * radius
        slope = (task.loss(ends[0], batch) - task.loss(ends[1], batch)) / (2 * radius)
        torch.testing.assert_close(grad[image, place], slope, rtol=1e-5, atol=1e-9)
    assert grad.abs().min() > 0


def test_problems_side_by_side_are_problems_one_by_one(art):
    task = art(batch=1)
    batches = [task.batch("train", index) for index in range(3)]
    theta = torch.randn(3, 1, task.spec.outputs, generator=generator("theta"))

    def loss(point, x, y):
        return task.loss(point, Batch(x, y, ()))

    x, y = (torch.stack(parts) for parts in (list(zip(*batches, strict=True))[:2]))
    grads, losses = vmap(grad_and_value(loss))(theta, x, y)
    for index, batch in enumerate(batches):
        grad, value = grad_and_value(loss)(theta[index], batch.x, batch.y)
        torch.testing.assert_close((losses[index], grads[index]), (value, grad), rtol=1e-4, atol=1e-4)


def test_theta_is_the_image_or_is_added_to_its_content(art):
    theta = torch.zeros(3, 3 * 16**2)
    added, alone = art(), art(origin="noise")
    batch = added.batch("train", 0)
    raw = batch.x * torch.tensor(vgg.DEVIATION).view(3, 1, 1) + torch.tensor(vgg.MEAN).view(3, 1, 1)
    torch.testing.assert_close(added.images(theta, batch), raw)
    assert torch.equal(alone.images(theta, batch), torch.tensor(vgg.MEAN).view(3, 1, 1).expand(3, 3, 16, 16))


def test_no_pixel_belongs_to_two_splits():
    """The blocks of the embedded photograph, found again in it: they do not touch."""
    found = pictures.content(NOWHERE, 20, 100).by_split
    assert {name: len(found[name]) for name in SPLITS} == {
        "train": 9, "valid": 3, "test": 3, "search_train": 5, "search_valid": 4,
    }  # fmt: skip
    assert found["train"] == found["search_train"] + found["search_valid"]
    whole = np.asarray(pictures._embedded("china.jpg"))
    owner = np.zeros(whole.shape[:2], dtype=int)
    for name in ("train", "valid", "test"):
        for block in (np.asarray(picture()) for picture in found[name]):
            corners = itertools.product(range(0, 285, 142), range(0, 513, 128))
            places = [(i, j) for i, j in corners if np.array_equal(whole[i : i + 142, j : j + 128], block)]
            assert len(places) == 1
            (i, j) = places[0]
            owner[i : i + 142, j : j + 128] += 1
    assert owner.max() == 1
    assert owner.sum() == 15 * 142 * 128


@pytest.fixture
def own_pictures(tmp_path):
    """A data folder with ten content images of one colour each, and a style."""
    for name, count in (("content", 10), ("style", 1)):
        folder = tmp_path / "neural_art" / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40 + number, 30), (20 * number, 10, 10)).save(folder / f"{number}.png")
        (folder / "notes.txt").write_text("no image")
    return tmp_path


def test_the_users_own_images_are_split_among_themselves(art, own_pictures):
    task = art(own_pictures, valid_images=2, test_images=3, style="0", batch=1)
    shades = {
        split: {int((task.images(torch.zeros(1, 768), batch)[0, 0, 0, 0] * 255).round()) for batch in batches}
        for split in SPLITS
        for batches in [[task.batch(split, index) for index in range(60)]]
    }
    assert [len(shades[split]) for split in SPLITS] == [5, 2, 3, 3, 2]
    assert shades["train"] == shades["search_train"] | shades["search_valid"]
    assert set.union(*shades.values()) == set(range(0, 200, 20))
    assert "10 images of content/" in task.spec.provenance
    assert "0.png of style/" in task.spec.provenance
    with pytest.raises(UserError, match="has 10 images, must have at least 11"):
        art(own_pictures, valid_images=6, test_images=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "monet"}, "task.style: got 'monet', must be one of: flower, hopper; or put monet.jpg in"),
        (
            {"style_layers": ["conv1_9"]},
            r"task.style_layers: got \['conv1_9'\], must be one or more of: conv",
        ),
        ({"content_layers": []}, r"task.content_layers: got \[\]"),
        (
            {"content_layers": ["conv5_4"], "side": 15},
            "task.side: got 15, must be at least 16 for conv5_4, which lies behind 4 poolings",
        ),
        ({"features": "auto"}, "task.thinning: got 16 with task.features=auto; ImageNet's weights have all"),
    ],
)
def test_what_does_not_fit_is_refused(art, changes, message):
    with pytest.raises(UserError, match=message):
        art(**changes)


def test_the_deepest_layer_fits_the_smallest_image(art):
    task = art(content_layers=["conv5_4"], side=16)
    assert task.batch("train", 0).y.shape == (3, 512 // 16)


def stored(folder, monkeypatch, convolutions):
    """A file like torchvision's of its own VGG-19 up to some layer; the network."""
    torch.manual_seed(0)
    network = make_layers(cfgs["E"][:convolutions])
    torch.save({f"features.{key}": leaf for key, leaf in network.state_dict().items()}, folder / "made")
    digest = hashlib.sha256((folder / "made").read_bytes()).hexdigest()
    monkeypatch.setattr(vgg, "FILE", f"vgg19-{digest[:8]}.pth")
    return (folder / "made").rename(folder / vgg.FILE), network


@pytest.mark.parametrize(
    ("convolutions", "last"), [(7, "conv3_1"), pytest.param(20, "conv5_4", marks=pytest.mark.slow)]
)
def test_weights_are_read_as_torchvision_numbers_them(tmp_path, monkeypatch, convolutions, last):
    _, network = stored(tmp_path, monkeypatch, convolutions)
    names = ["conv1_1", "conv2_1", last]
    features = vgg.load("auto", names, 1, tmp_path, download=False)
    assert features.learned
    images = torch.rand(2, 3, 32, 32)
    found = vgg.activations(features.weights, images, names, "max")
    torch.testing.assert_close(found[last], network(images))
    torch.testing.assert_close(found["conv1_1"], network[:2](images))
    torch.testing.assert_close(found["conv2_1"], network[:7](images))


def test_an_altered_file_is_never_used(tmp_path, monkeypatch):
    path, _ = stored(tmp_path, monkeypatch, 1)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="truncated or altered: its sha256 must begin with"):
        vgg.load("auto", ["conv1_1"], 1, tmp_path, download=False)


def test_without_the_file_features_are_random_and_say_so(art, capsys, cache):  # noqa: ARG001
    """Or they are refused, if ImageNet's were asked for."""
    task = art(features="auto", thinning=1)
    assert (
        "VGG-19 with random weights drawn by a fixed key, for there are no ImageNet" in task.spec.provenance
    )
    assert not task.spec.comparable
    assert capsys.readouterr().err.count("metalearn: task neural_art: features are VGG-19 with random") == 1
    with pytest.raises(UserError, match=r"no file .*vgg19-dcbb9e9d.pth, and download=false forbids"):
        art(features="imagenet", thinning=1)


def test_random_features_neither_vanish_nor_explode():
    images = torch.randn(1, 3, 32, 32, generator=generator("images"))
    found = vgg.activations(vgg.random(16, 8), images, ["conv1_1", "conv3_1", "conv5_4"], "max")
    scales = [float(activation.square().mean().sqrt()) for activation in found.values()]
    assert all(0.3 < scale < 5 for scale in scales)
    assert [activation.shape[1] for activation in found.values()] == [8, 32, 64]


def test_the_papers_coordinates(art):
    """12,288 at 64 pixels and 49,152 at 128, with another style (section 3.4)."""
    assert [art(side=64).spec.outputs, art(side=128, style="hopper").spec.outputs] == [12_288, 49_152]
