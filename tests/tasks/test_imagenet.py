"""Photographs in folders: what is read, what is cut out and recoloured, what threads may not change."""

import shutil
import threading
from concurrent.futures import wait

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from metalearn.registry import UserError
from metalearn.rng import generator
from tasks.ahead import Ahead
from tasks.catalogue import availability
from tasks.photographs import _COLOURS, Draw, draws, middle_image, random_box, train_image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def image(tmp_path):
    """image(width, height): the path of a smooth picture, stored without loss."""

    def write(width, height):
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.stack([255 * x // width, 255 * y // height, (3 * x + 5 * y) % 256], axis=-1)
        path = tmp_path / f"{width}x{height}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        return path

    return write


def plain(
    boxes=((1.0, 1.0),), place=(0.0, 0.0), flip=False, factors=(1.0, 1.0, 1.0, 0.0), order=(0, 1, 2, 3)
):
    return Draw([list(box) for box in boxes], list(place), flip, list(factors), list(order))


def test_splits_are_whole_disjoint_and_of_all_classes(make):
    task = make("imagenet")
    assert task.spec.sizes == {"train": 28, "search_train": 14, "search_valid": 14, "valid": 8, "test": 12}
    assert task.spec.outputs == 3
    assert len(set(task.paths)) == 48
    train, test = task.paths[:36], task.paths[36:]
    assert all(path.startswith("train/") for path in train)
    assert all(path.startswith("val/") for path in test)
    assert train != sorted(train)
    for path, label in zip(task.paths, task.y.tolist(), strict=True):
        assert path.split("/")[1] == f"n0{label + 1}"


def test_a_part_is_marked(make):
    assert not make("imagenet").spec.comparable
    assert "36 + 12 images in 3 classes" in make("imagenet").spec.provenance


def test_a_sweep_is_what_torchvision_gives(make):
    task = make("imagenet")
    swept = torch.cat([batch.x for batch in task.sweep("test")])
    for row, path in enumerate(task.paths[36:]):
        with Image.open(task.root / path) as opened:
            picture = F.center_crop(F.resize(opened.convert("RGB"), 36, InterpolationMode.BILINEAR), [32, 32])
        expected = F.normalize(F.to_tensor(picture), list(MEAN), list(DEVIATION))
        torch.testing.assert_close(swept[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (256, 256), (97, 411)])
def test_the_middle_is_torchvisions(image, size):
    path = image(*size)
    expected = F.center_crop(F.resize(Image.open(path), 256, InterpolationMode.BILINEAR), [224, 224])
    assert torch.equal(middle_image(path, 256, 224), F.pil_to_tensor(expected))


def test_a_training_image_is_torchvisions_of_the_same_draw(image, options):
    path, draw = image(300, 200), plain([[0.4, 1.25]], (0.3, 0.9), True, (0.7, 1.3, 0.6, -0.15), (3, 1, 0, 2))
    left, upper, right, lower = random_box((300, 200), draw, (0.75, 4 / 3))
    picture = F.resized_crop(Image.open(path), upper, left, lower - upper, right - left, [32, 32])
    picture = F.adjust_contrast(F.adjust_hue(F.hflip(picture), -0.15), 1.3)
    picture = F.adjust_saturation(F.adjust_brightness(picture, 0.7), 0.6)
    assert torch.equal(train_image(path, draw, options("imagenet")), F.pil_to_tensor(picture))


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.003, 0.11, 0.5])
def test_hue_is_torchvisions(image, turn):
    picture = Image.open(image(64, 48))
    assert torch.equal(
        F.pil_to_tensor(_COLOURS[3](picture, turn)), F.pil_to_tensor(F.adjust_hue(picture, turn))
    )


def test_no_turn_loses_no_colour(image):
    picture = Image.open(image(64, 48))
    assert _COLOURS[3](picture, 0.0) is picture


def test_boxes_have_their_part_and_ratio():
    box = random_box((400, 300), plain([[0.25, 4 / 3]], (0.0, 0.999)), (0.75, 4 / 3))
    assert box == (0, 150, 200, 300)
    second = random_box((400, 300), plain([[1.0, 1.0], [0.25, 4 / 3]]), (0.75, 4 / 3))  # 346 are too high
    assert second == (0, 0, 200, 150)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 100), (133, 0, 266, 100)), ((100, 400), (0, 133, 100, 266)), ((110, 100), (0, 0, 110, 100))],
)
def test_where_no_box_fits_the_middle_is_taken(size, expected):
    """As torchvision falls back: the ratio at the nearer end of what is allowed."""
    never = plain([[2.0, 1.0]] * 10)
    assert random_box(size, never, (0.75, 4 / 3)) == expected


def test_boxes_are_distributed_as_torchvisions(options):
    """Mean area, ratio and place of many boxes of a 400x300 image."""
    count, ranges = 4000, ([0.08, 1.0], [0.75, 4 / 3])
    ours = [
        random_box((400, 300), draw, ranges[1]) for draw in draws(count, options("imagenet"), generator(1))
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = Image.new("RGB", (400, 300))
        theirs = [RandomResizedCrop.get_params(blank, *ranges) for _ in range(count)]
    mine = torch.tensor([(b[1], b[0], b[3] - b[1], b[2] - b[0]) for b in ours], dtype=torch.float64)
    other = torch.tensor(theirs, dtype=torch.float64)
    error = (mine.var(0) / count + other.var(0) / count).sqrt()
    assert ((mine.mean(0) - other.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(mine.std(0), other.std(0), rtol=0.06, atol=0)


def test_draws_are_in_their_ranges(options):
    drawn = draws(500, options("imagenet"), generator(0))
    boxes, factors = (
        torch.tensor([draw.boxes for draw in drawn]),
        torch.tensor([draw.factors for draw in drawn]),
    )
    low, high = boxes.amin((0, 1)), boxes.amax((0, 1))
    torch.testing.assert_close(
        torch.stack([low, high]), torch.tensor([[0.08, 0.75], [1.0, 4 / 3]]), rtol=0.01, atol=1e-3
    )
    torch.testing.assert_close(factors.amin(0), torch.tensor([0.6, 0.6, 0.6, -0.2]), rtol=0, atol=0.01)
    torch.testing.assert_close(factors.amax(0), torch.tensor([1.4, 1.4, 1.4, 0.2]), rtol=0, atol=0.01)
    assert 0.4 < sum(draw.flip for draw in drawn) / 500 < 0.6
    assert len({tuple(draw.order) for draw in drawn}) == 24


def test_threads_and_what_is_decoded_ahead_change_nothing(make, make_fresh):
    lone = make_fresh("imagenet", "threads=1", "ahead=0")
    for split, index in [("train", 0), ("train", 1), ("valid", 5), ("train", 3), ("train", 2), ("train", 9)]:
        expected, found = lone.batch(split, index), make("imagenet").batch(split, index)
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.y, expected.y)


def test_the_last_batch_of_an_epoch_is_short_unless_it_is_dropped(make):
    task, dropping = make("imagenet", "batch=10", "drop_last=false"), make("imagenet", "batch=10")
    assert (task.batches("train"), dropping.batches("train")) == (3, 2)
    assert task.batch("train", 2).x.shape == (8, 3, 32, 32)
    rows = torch.cat([task.rows("train", index) for index in range(3)])
    assert rows.sort().values.tolist() == list(range(28))


def test_batches_are_begun_before_they_are_asked_for():
    begun: list[int] = []

    def work(index):
        begun.append(index)
        return [lambda: torch.tensor(float(index))]

    ahead = Ahead(threads=1, ahead=2)
    assert ahead.get("a", 0, work).tolist() == [0.0]
    assert begun == [0, 1, 2]
    assert ahead.get("a", 1, work, end=3).tolist() == [1.0]
    assert begun == [0, 1, 2]
    assert ahead.get("a", 7, work).tolist() == [7.0]
    assert begun[3:] == [7, 13, 19]  # as alpha's batches come: a step of one epoch apart
    assert set(ahead.pending["a"]) == {13, 19}
    assert ahead.get("b", 0, work).tolist() == [0.0]
    assert set(ahead.pending["a"]) == {13, 19}


def test_what_is_decoded_ahead_is_done_by_other_threads():
    ahead, callers = Ahead(threads=2, ahead=2), []

    def row():
        callers.append(threading.current_thread())
        return torch.zeros(())

    ahead.get("a", 0, lambda _: [row])
    wait([row for rows in ahead.pending["a"].values() for row in rows], timeout=10)
    assert len(callers) == 3
    assert threading.current_thread() not in callers


def test_five_best_count_as_right(make):
    task = make("imagenet")
    batch = task.batch("train", 0)._replace(y=torch.tensor([0, 1, 2, 6]))
    output = torch.tensor([[7.0, 6, 5, 4, 3, 2, 1]]).expand(4, 7)
    metrics = task.metrics(output, batch)
    assert (metrics["error"], metrics["error_top5"]) == (75, 25)


def test_missing_folders_are_named_with_the_remedy(make_fresh, tmp_path, photographs):
    assert "missing: put imagenet/train/<wnid>/*.JPEG, imagenet/val" in availability("imagenet", tmp_path)
    with pytest.raises(
        UserError, match=r"imagenet/train; put the images of ILSVRC 2012 there as train/<wnid>"
    ):
        make_fresh("imagenet", data_dir=tmp_path)
    copy = tmp_path / "imagenet"
    shutil.copytree(photographs / "imagenet", copy)
    assert availability("imagenet", tmp_path) == "in data_dir"
    shutil.rmtree(copy / "val" / "n02")
    with pytest.raises(UserError, match="val has 2 classes, train has 3; not in both: n02"):
        make_fresh("imagenet", data_dir=tmp_path)


def test_a_broken_image_is_named(make_fresh, tmp_path, photographs):
    shutil.copytree(photographs / "imagenet", tmp_path / "imagenet")
    broken = tmp_path / "imagenet" / "val" / "n02" / "n02_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=r"n02_1.JPEG: cannot be read as an image .*; put a good copy there"):
        list(make_fresh("imagenet", data_dir=tmp_path).sweep("test"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("jitter=[0.4,0.4,0.4]", r"task.jitter: got .*, must be 4 numbers"),
        ("jitter=[0.4,0.4,0.4,0.6]", r"hue of 0.6, must be at most 0.5"),
        ("area=[1.0,0.1]", r"task.area: got .*the lowest and the highest"),
        ("side=40", r"task.side: got 40, must be at most task.resize \(36\)"),
        ("valid_size=35", r"task.valid_size: got 35, must be at most 34"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_fresh, line, message):
    with pytest.raises(UserError, match=message):
        make_fresh("imagenet", line)
