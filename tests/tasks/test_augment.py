"""Batched augmentation against loops over examples."""

import pytest
import torch

from metalearn.rng import generator
from tasks import augment


def images(batch=40, channels=2, height=7, width=6):
    return torch.randn(batch, channels, height, width, generator=generator("images"))


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_is_a_shift_with_zeros_drawn_in(padding):
    old = images()
    new = augment.crop(old, padding, generator("crop"))
    offsets = torch.randint(0, 2 * padding + 1, (2, len(old)), generator=generator("crop"))
    for example in range(len(old)):
        down, right = (offsets[:, example] - padding).tolist()
        for row in range(7):
            for column in range(6):
                inside = 0 <= row + down < 7 and 0 <= column + right < 6
                expected = old[example, :, row + down, column + right] if inside else torch.zeros(2)
                assert torch.equal(new[example, :, row, column], expected)


def test_crop_reaches_every_place_equally_often():
    pixel = torch.zeros(20_000, 1, 3, 3)
    pixel[:, :, 1, 1] = 1
    place = augment.crop(pixel, 1, generator("places")).mean(0)[0]
    torch.testing.assert_close(place, torch.full((3, 3), 1 / 9), atol=0.01, rtol=0)


def test_crop_keeps_bytes():
    old = images().mul(50).to(torch.uint8)
    assert augment.crop(old, 2, generator(0)).dtype == torch.uint8


def test_flip_mirrors_left_and_right_half_of_the_time():
    old = images(batch=2000)
    new = augment.flip(old, generator("flip"))
    mirrored = sum(torch.equal(b, torch.stack(a.unbind(-1)[::-1], -1)) for a, b in zip(old, new, strict=True))
    kept = sum(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert mirrored + kept == 2000
    assert 900 < mirrored < 1100


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_cutout_is_a_square_clipped_at_the_border(side):
    old = images() + 10
    new = augment.cutout(old, side, generator("cutout"))
    rng = generator("cutout")
    down, right = (torch.randint(0, size, (len(old), 1), generator=rng) for size in (7, 6))
    for example in range(len(old)):
        expected = old[example].clone()
        top, left = int(down[example]) - side // 2, int(right[example]) - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert torch.equal(new[example], expected)


def test_cutout_centres_are_uniform():
    holes = augment.cutout(torch.ones(40_000, 1, 4, 5), 1, generator("holes"))
    torch.testing.assert_close(1 - holes.mean(0)[0], torch.full((4, 5), 1 / 20), atol=0.005, rtol=0)


@pytest.mark.parametrize("change", [augment.crop, augment.cutout])
def test_the_generator_decides(change):
    old = images()
    assert torch.equal(change(old, 3, generator("a")), change(old, 3, generator("a")))
    assert not torch.equal(change(old, 3, generator("a")), change(old, 3, generator("b")))
