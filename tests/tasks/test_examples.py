"""Labelled examples: splits, epochs, augmentation in place, and the readers' data."""

import pytest
import torch

from metalearn.registry import UserError

SPLITS = ("train", "valid", "test")


@pytest.mark.parametrize(
    "name", ["digits", "two_moons", "mnist", pytest.param("cifar10", marks=pytest.mark.slow)]
)
def test_splits_are_the_data_cut_in_file_order(make, name):
    """Disjoint, whole, and the halves of DARTS are the first and the second half of train."""
    task = make(name)
    swept = {
        split: torch.cat([batch.x for batch in task.sweep(split)])
        for split in (*SPLITS, "search_train", "search_valid")
    }
    labels = torch.cat([batch.y for split in SPLITS for batch in task.sweep(split)])
    assert torch.equal(torch.cat([swept[split] for split in SPLITS]), task._normalised(task.x))
    assert torch.equal(labels, task.y)
    assert torch.equal(torch.cat([swept["search_train"], swept["search_valid"]]), swept["train"])
    assert len(swept["search_train"]) - len(swept["search_valid"]) in (0, 1)


@pytest.mark.parametrize("split", ["train", "valid", "search_valid", "test"])
def test_an_epoch_is_a_permutation_without_the_remainder(make, split):
    task = make("two_moons")  # whose points are all distinct
    count = task.batches(split)
    epoch = torch.cat([task.batch(split, index).x for index in range(count)])
    following = torch.cat([task.batch(split, count + index).x for index in range(count)])
    points = {tuple(point) for batch in task.sweep(split) for point in batch.x.tolist()}
    drawn = [tuple(point) for point in epoch.tolist()]
    assert len(set(drawn)) == len(drawn) == count * 32
    assert set(drawn) <= points
    assert len(points) - len(drawn) < 32
    assert not torch.equal(epoch, following)


@pytest.mark.parametrize("split", ["train", "search_train", "test"])
def test_an_epoch_can_keep_its_last_short_batch(make, split):
    """As the code of DARTS: 391 batches of 64 and less in 25,000 images."""
    task, full = make("two_moons", "batch=70", "drop_last=false"), make("two_moons", "batch=70")
    count, size = task.batches(split), task.spec.sizes[split]
    sizes = [len(task.batch(split, index).y) for index in range(2 * count)]
    assert sizes == 2 * ([70] * (size // 70) + [size % 70])
    epoch = torch.cat([task.batch(split, index).x for index in range(count)])
    points = {tuple(point) for batch in task.sweep(split) for point in batch.x.tolist()}
    assert {tuple(point) for point in epoch.tolist()} == points
    assert full.batches(split) == count - 1
    assert torch.equal(full.batch(split, 0).x, task.batch(split, 0).x)
    assert torch.equal(full.batch(split, count - 1).x, task.batch(split, count).x)


def test_digits_test_set_is_balanced(make):
    task = make("digits")
    test = torch.cat([batch.y for batch in task.sweep("test")])
    assert torch.equal(torch.bincount(test), torch.bincount(task.y) // 5)
    assert len(task.y) == 1797
    assert task.x.max() == 16


def test_two_moons_do_not_touch(make):
    """Points lie on their own half circle up to the noise."""
    task = make("two_moons")
    distance = torch.linalg.vector_norm(task.x - torch.stack([task.y, task.y * 0.5], 1), dim=1)
    assert (distance - 1).abs().max() < 0.45
    assert (distance - 1).std() == pytest.approx(0.1, abs=0.01)
    assert torch.bincount(task.y).tolist() == [500, 500]


def test_mnist_is_mnist(make):
    task = make("mnist")
    assert torch.bincount(task.y[-10_000:]).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    pixels = task.x[:60_000].float() / 255
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.slow
def test_cifar10_copy_is_marked_and_balanced(make):
    task = make("cifar10")
    assert not task.spec.comparable
    assert "lossy" in task.spec.provenance
    assert torch.bincount(task.y[:50_000]).tolist() == [5000] * 10
    assert torch.bincount(task.y[50_000:]).tolist() == [1000] * 10
    pixels = task.x[:50_000].float() / 255
    torch.testing.assert_close(pixels.mean((0, 2, 3)), task.mean.flatten(), atol=2e-3, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), task.deviation.flatten(), atol=5e-3, rtol=0)


def test_normalisation(make):
    plain, normalised = make("mnist"), make("mnist", "normalise=true")
    x, z = plain.batch("train", 0).x, normalised.batch("train", 0).x
    assert (x.min(), x.max()) == (0, 1)
    torch.testing.assert_close(z, (x - 0.1307) / 0.3081)


def test_padding_is_black_and_the_hole_is_zero_after_normalisation(make):
    """As torchvision crops before it normalises, and DARTS cuts out after."""
    black = -0.1307 / 0.3081
    cropped = make("mnist", "normalise=true", "crop=27").batch("train", 0).x
    corners = cropped[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners.min(), torch.tensor(black))
    assert not (cropped == 0).any()
    cut = make("mnist", "normalise=true", "cutout=8").batch("train", 0).x
    holes = (cut == 0).sum((1, 2, 3))
    assert 16 <= holes.min() < holes.max() == 64


def test_augmentation_is_for_batches_and_follows_the_key(make):
    task, bare = make("digits", "crop=2", "flip=true", "cutout=2"), make("digits")
    first, again = task.batch("train", 3), task.batch("train", 3)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, bare.batch("train", 3).y)
    assert not torch.equal(first.x, bare.batch("train", 3).x)
    assert torch.equal(next(task.sweep("test")).x, next(bare.sweep("test")).x)


def test_error_is_in_percent(make):
    task = make("digits")
    batch = task.batch("train", 0)
    right = torch.nn.functional.one_hot(batch.y, 10).float() * 100
    right[:16] = right[:16].roll(1, dims=1)
    assert task.metrics(right, batch)["error"] == 25


def test_training_on_all_leaves_no_validation(make):
    task = make("digits", "valid_size=0")
    assert task.spec.sizes["train"] == 1797 - 355
    for ask in (lambda: next(task.sweep("valid")), lambda: task.batch("valid", 0)):
        with pytest.raises(UserError, match=r"split valid is empty, for task.valid_size is 0; raise it"):
            ask()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch=1205", r"task.batch: got 1205, must be at most 1204, the examples of digits's split train"),
        ("valid_size=1441", r"task.valid_size: got 1441, must be at most 1440"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(make, line, message):
    with pytest.raises(UserError, match=message):
        make("digits", line)


def test_a_half_smaller_than_the_batch_is_refused_when_asked_for(make):
    task = make("digits", "batch=700")
    assert task.batches("train") == 1
    with pytest.raises(UserError, match="must be at most 602, the examples of digits's split search_train"):
        task.batch("search_train", 0)
