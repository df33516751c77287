"""Handwriting: lines of different lengths, padding, passes, losses, pictures."""

import math
import time
from xml.etree import ElementTree

import pytest
import torch

from metalearn.rng import generator
from metalearn.task import Batch, Continued, Pictured
from tasks import mixture
from tasks.pen_strokes import FONT, WORDS, _laid_out

SPLITS = ("train", "valid", "test", "search_train", "search_valid")


def lengths_of(batch):
    return (~batch.y[..., 2].isnan()).sum(1)


@pytest.fixture
def task(make):
    return make("pen_strokes")


@pytest.mark.parametrize("split", SPLITS)
def test_y_are_the_moves_after_x(task, split):
    batch = task.batch(split, 1)
    lengths = lengths_of(batch)
    assert lengths.min() < lengths.max() == batch.x.shape[1]
    for x, y, length in zip(batch.x, batch.y, lengths.tolist(), strict=True):
        assert torch.equal(x[0], torch.zeros(3))
        assert torch.equal(x[1:length], y[: length - 1])
        assert not x[length:].any()
        assert y[length:].isnan().all()
        assert set(y[:length, 2].tolist()) == {0.0, 1.0}
        assert y[length - 1, 2] == 1


def test_every_line_is_met_once_in_a_pass(make):
    task = make("pen_strokes", "scaling=0", "bucket=3")
    for first in (0, task.batches("valid")):
        batches = [task.batch("valid", first + index) for index in range(task.batches("valid"))]
        assert [len(batch.x) for batch in batches] == [32] * 6 + [8]
        met = [line[: int(length)] for batch in batches
               for line, length in zip(batch.y, lengths_of(batch), strict=True)]  # fmt: skip
        there = [line[: int(length)] for batch in task.sweep("valid")
                 for line, length in zip(batch.y, lengths_of(batch), strict=True)]  # fmt: skip
        assert len({tuple(line.flatten().tolist()) for line in met}) == 200
        assert {tuple(line.flatten().tolist()) for line in met} == {
            tuple(line.flatten().tolist()) for line in there
        }


def test_buckets_save_padding(make):
    def padding(bucket):
        task = make("pen_strokes", f"bucket={bucket}")
        batches = [task.batch("valid", index) for index in range(task.batches("valid"))]
        return sum(float(batch.y[..., 2].isnan().sum()) for batch in batches)

    assert padding(16) < 0.4 * padding(1)


def test_training_lines_have_mean_zero_and_deviation_one(make):
    task = make("pen_strokes")
    moves = torch.cat([batch.y[~batch.y[..., 2].isnan()] for batch in task.sweep("train")])
    torch.testing.assert_close(moves[:, :2].mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(moves[:, :2].std(0), torch.ones(2), rtol=1e-3, atol=0)
    others = torch.cat([batch.y[~batch.y[..., 2].isnan()] for batch in task.sweep("valid")])
    assert (others[:, :2].mean(0).abs() > 1e-4).any()  # its own statistics are not used


def test_scaling_is_by_one_factor_a_line_within_its_bounds(make):
    """Of the raw moves: those of a line, normalised back, are a multiple of what is there."""
    plain, scaled = make("pen_strokes", "scaling=0").batch("train", 3), make("pen_strokes").batch("train", 3)
    task = make("pen_strokes")
    factors = []
    for a, b, length in zip(plain.y, scaled.y, lengths_of(plain).tolist(), strict=True):
        raw = (a[:length, :2] * task.deviation + task.mean).flatten()
        wide = (b[:length, :2] * task.deviation + task.mean).flatten()
        factor = (raw @ wide) / (raw @ raw)
        torch.testing.assert_close(wide, factor * raw, rtol=0, atol=1e-5)
        factors.append(float(factor))
    assert 0.9 <= min(factors) < 0.95 < 1.05 < max(factors) <= 1.1
    assert torch.equal(plain.y[..., 2].nan_to_num(), scaled.y[..., 2].nan_to_num())


def some_output(batch, outputs=121):
    return torch.randn(*batch.x.shape[:2], outputs, generator=generator("output"))


@pytest.mark.parametrize("per", ["point", "sequence"])
def test_loss_is_a_mean_and_the_metric_nats_a_line(make, per):
    task = make("pen_strokes", f"per={per}")
    batch = task.batch("train", 0)
    output, lengths = some_output(batch), lengths_of(batch)
    lines = [
        -mixture.log_density(mixture.mixture(said[:length]), y[:length]).sum()
        for said, y, length in zip(output, batch.y, lengths.tolist(), strict=True)
    ]
    total = torch.stack(lines).sum()
    torch.testing.assert_close(task.metrics(output, batch)["loss"], total / len(lines))
    count = int(lengths.sum()) if per == "point" else len(lines)
    torch.testing.assert_close(task.loss(output, batch), total / count)


def test_padding_has_no_gradient_and_changes_nothing(task):
    batch = task.batch("train", 0)
    output = some_output(batch).requires_grad_()
    (grad,) = torch.autograd.grad(task.loss(output, batch), output)
    gone = batch.y[..., 2].isnan()
    assert grad[gone].abs().sum() == 0
    assert (grad[~gone].abs().sum(-1) > 0).all()
    longer = Batch(
        torch.nn.functional.pad(batch.x, (0, 0, 0, 5)),
        torch.nn.functional.pad(batch.y, (0, 0, 0, 5), value=torch.nan),
        batch.key,
    )
    more = torch.nn.functional.pad(output.detach(), (0, 0, 0, 5), value=3.0)
    torch.testing.assert_close(task.loss(more, longer), task.loss(output.detach(), batch))


def test_loss_is_at_least_in_float32(task):
    batch = task.batch("train", 0)
    output = some_output(batch)
    assert task.loss(output.bfloat16(), batch).dtype == torch.float32
    assert task.loss(output.double(), batch).dtype == torch.float64


def test_it_is_continued_and_pictured(task):
    assert isinstance(task, Continued)
    assert isinstance(task, Pictured)
    assert torch.equal(task.opening, torch.zeros(3))
    drawn = task.draw(some_output(task.batch("train", 0))[:, 0], generator("draw"), 1.0)
    assert (drawn.shape, drawn.dtype) == ((32, 3), torch.float32)


def paths_of(svg):
    root = ElementTree.fromstring(svg)
    return [node.attrib["d"] for node in root.iter("{http://www.w3.org/2000/svg}path")]


def test_picture_lifts_the_pen(task):
    """One path, one pen-down part a stroke, a point a move."""
    batch = next(task.sweep("valid"))
    line = batch.y[0][: int(lengths_of(batch)[0])]
    (path,) = paths_of(task.picture(line))
    assert path.count("L") + path.count("M") == len(line) + 1
    assert path.count("M") == int(line[:, 2].sum())
    places = [tuple(map(float, part.split())) for part in path.replace("M", "L").split("L")[1:]]
    raw = line[:, :2] * task.deviation + task.mean
    moved = torch.tensor(places).diff(dim=0)
    scale = float(moved.norm() / raw.norm())
    torch.testing.assert_close(moved, scale * raw, rtol=0, atol=0.15)


def test_gallery_shows_drawn_beside_real(task):
    lines = [task.batch("train", 0).y[row][:9] for row in range(3)]
    svg = task.gallery({"drawn <1>": lines, "more": lines[:1]})
    assert len(paths_of(svg)) == 3 + 1 + 3
    assert [node.text for node in ElementTree.fromstring(svg) if node.text and node.text.strip()] == [
        "drawn <1>",
        "more",
        "real",
    ]


def test_the_font_has_what_the_words_need():
    assert set("".join(WORDS)) <= set(FONT)
    assert len(set(WORDS)) == len(WORDS)
    words = _laid_out(["in"])
    assert words.segments.tolist() == [3, 1, 5]
    assert torch.equal(words.control[0, :2], torch.tensor([[0.0, 4.0], [0.0, 4.0]], dtype=torch.float64))


def test_a_synthetic_set_is_made_in_a_moment(make_fresh):
    start = time.process_time()
    task = make_fresh("pen_strokes")
    assert time.process_time() - start < 2.0  # a third of a second on an idle core
    assert all(20 <= length <= 120 for length in task.lengths)
    assert math.isclose(sum(task.lengths) / len(task.lengths), 58, abs_tol=2)
