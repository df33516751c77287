"""Omniglot: episodes of the real drawings, and the archives' layout at a few generated characters."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.registry import UserError
from tasks import drawings, sources
from tasks.catalogue import availability
from tasks.drawings import read_omniglot
from tasks.files import DataFile

PEOPLE = range(1, 21)
SPLITS = ("train", "valid", "test", "search_train", "search_valid")


def pixels(character, drawer):
    """A square of ink whose place and side tell the character and the drawer."""
    image = np.full((105, 105), True)
    image[4 * drawer : 4 * drawer + 8, 8 * character : 8 * character + 5] = False
    return image


def png(image):
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def archive(top, members):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as packed:
        packed.writestr(f"{top}/", b"")
        for (character, drawer), content in members.items():
            place = f"Alphabet{character // 3}/character{character % 3 + 1:02}"
            packed.writestr(f"{top}/{place}/{900 + character:04}_{drawer:02}.png", content)
    return sink.getvalue()


def some(characters):
    return {(c, drawer): png(pixels(c, drawer)) for c in characters for drawer in PEOPLE}


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """lay(members, members): the two archives under a new data_dir, known to `sources` by their digests."""
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "cache"))

    def layout(*parts):
        packed = [archive(f"small{number}", members) for number, members in enumerate(parts, 1)]
        names = [file.places[0] for file in sources.OMNIGLOT]
        known = [
            DataFile(f"sha256:{hashlib.sha256(part).hexdigest()}", (name,))
            for part, name in zip(packed, names, strict=True)
        ]
        monkeypatch.setattr(sources, "OMNIGLOT", known)
        (tmp_path / "omniglot").mkdir()
        for part, name in zip(packed, names, strict=True):
            (tmp_path / name).write_bytes(part)
        return tmp_path

    return layout


def test_archives_are_merged_and_shared_characters_taken_once(lay):
    """Each large pixel is the mean of the small ones under it, by one integral over fine strips."""
    found = read_omniglot(lay(some(range(6)), some(range(3, 9))), download=False)
    assert (found.shape, found.dtype) == ((9, 20, 28, 28), torch.uint8)
    for character, drawer in ((0, 1), (5, 20), (8, 7)):
        fine = np.kron(1.0 - pixels(character, drawer), np.ones((4, 4)))
        expected = fine.reshape(28, 15, 28, 15).mean((1, 3))
        assert np.abs(found[character, drawer - 1].numpy() - 255 * expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda first, _: first.pop((2, 7)), "got 179 drawings of 9 characters, must be 20 of each"),
        (lambda first, _: first.update({(4, 3): png(pixels(0, 0))}), "two different drawings are called"),
        (lambda _, second: second.update({(8, 1): png(np.full((9, 105), True))}), r"image of \(105, 9\)"),
        (lambda _, second: second.update({(8, 1): bytes(1 << 15)}), "one above 16384 bytes"),
    ],
)
def test_archives_that_are_not_whole_are_refused(lay, change, message):
    parts = some(range(6)), some(range(3, 9))
    change(*parts)
    with pytest.raises(UserError, match=message):
        read_omniglot(lay(*parts), download=False)


def test_an_altered_archive_is_refused_and_a_missing_one_named(lay):
    folder = lay(some(range(6)), some(range(6, 9)))
    path = folder / "omniglot" / "images_background_small2.zip"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"small2\.zip: truncated or altered: expected sha256"):
        read_omniglot(folder, download=False)
    path.unlink()
    with pytest.raises(UserError, match=r"no file .*small2\.zip.*put it there"):
        read_omniglot(folder, download=False)
    assert "put omniglot/images_background_small2.zip under" in availability("omniglot", folder)


def test_decoded_drawings_are_kept_and_checked(lay, tmp_path, monkeypatch):
    folder = lay(some(range(6)), some(range(6, 9)))
    first = read_omniglot(folder, download=False)
    (kept,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(drawings, "_ink", None)
        assert torch.equal(read_omniglot(folder, download=False), first)
    content = torch.load(kept, weights_only=True)
    content["drawings"][0, 0, 0, 0] ^= 1
    torch.save(content, kept)
    assert torch.equal(read_omniglot(folder, download=False), first)


def where(task):
    """A drawing's bytes -> the (class, drawer) pairs that look so: turns of one drawing may coincide."""
    found = {}
    for number, drawn in enumerate(task.images):
        for drawer, image in enumerate(drawn):
            found.setdefault(image.numpy().tobytes(), set()).add((number, drawer))
    return found


def bytes_of(x):
    return (x * 255).round().to(torch.uint8).numpy().tobytes()


def check_episode(known, task, split, x, y):
    """Every label is one class of the split, labels differ, and no drawing comes twice."""
    drawn = [known[bytes_of(image)] for image in x]
    assert len({bytes_of(image) for image in x}) == len(x)
    classes = []
    for label in range(task.ways):
        of_label = [{number for number, _ in drawn[row]} for row in (y == label).nonzero().flatten()]
        assert len(of_label) == task.drawn
        (number,) = set.intersection(*of_label)
        assert number in task.ranges[split]
        classes.append(number)
    assert len(set(classes)) == task.ways
    return classes


def test_episodes_of_generated_characters(lay, make_fresh):
    folder = lay(some(range(6)), some(range(6, 12)))
    lines = "ways=2", "shots=2", "queries=4", "batch=5"
    task = make_fresh("omniglot", *lines, "rotations=false", data_dir=folder)
    expected = {"train": 8, "search_train": 4, "search_valid": 4, "valid": 2, "test": 2}
    assert task.spec.sizes == expected
    assert (task.spec.support, task.spec.outputs, task.spec.comparable) == (4, 2, False)
    known = where(task)
    for split in SPLITS:
        x, y, _ = task.batch(split, 0)
        for each, labels in zip(x, y, strict=True):
            check_episode(known, task, split, each, labels)
            assert sorted(labels[:4].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("split", SPLITS)
def test_episodes_of_real_characters(make, split):
    task = make("omniglot", "shots=2", "queries=3", "batch=4")
    known = where(task)
    met = [
        check_episode(known, task, split, x, y)
        for index in range(3)
        for x, y in zip(*task.batch(split, index)[:2], strict=True)
    ]
    assert len(set(map(tuple, met))) == 12
    assert any(row != sorted(row) for row in met)  # labels are dealt anew


def test_splits_share_no_character_and_a_turn_stays_with_its_character(make):
    task = make("omniglot")
    characters = {split: {number // 4 for number in task.ranges[split]} for split in SPLITS}
    assert [len(characters[split]) for split in SPLITS] == [146, 48, 48, 73, 73]
    assert characters["train"] == characters["search_train"] | characters["search_valid"]
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not characters[one] & characters[other]
    assert not characters["search_train"] & characters["search_valid"]
    upright = task.images[::4]
    assert len(torch.unique(upright.flatten(1), dim=0)) == 242
    for turn in range(1, 4):
        assert torch.equal(task.images[turn::4], upright.rot90(turn, (-2, -1)))
    pictures = {
        split: {image.numpy().tobytes() for image in task.images[rows.start : rows.stop].flatten(0, 1)}
        for split, rows in task.ranges.items()
    }
    assert not pictures["train"] & (pictures["valid"] | pictures["test"])
    assert not pictures["valid"] & pictures["test"]


def test_every_class_and_drawer_is_drawn_equally_often(make):
    task = make("omniglot", "rotations=false", "batch=3000", "shots=1", "queries=1")
    known = where(task)
    x, _, _ = task.batch("valid", 0)
    pairs = [next(iter(known[bytes_of(image)])) for image in x.flatten(0, 1)]
    for column, count in ((0, 48), (1, 20)):
        often = torch.tensor([pair[column] for pair in pairs]).bincount()
        often = often[often > 0]
        assert len(often) == count
        assert (often * count / len(pairs) - 1).abs().max() < 0.2


def test_the_sweep_is_the_same_whatever_the_run(make, make_fresh):
    whole = torch.cat([batch.x for batch in make("omniglot").sweep("valid")])
    other = make_fresh("omniglot", "evaluated=7", "evaluation_batch=3", "batch=2", seed=9)
    assert [len(batch.y) for batch in other.sweep("valid")] == [3, 3, 1]
    assert torch.equal(torch.cat([batch.x for batch in other.sweep("valid")]), whole[:7])


def test_pixels_are_the_same_on_every_machine(make):
    assert make("omniglot").spec.digest == "5d00a28eb0e42ae9d9a9904f0732792763422f36eab4e8952e3ea4c47bc67141"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ways=60", "rotations=false"], r"task.ways: got 60, must be at most 48, .* split valid"),
        (["shots=10", "queries=11"], r"task.shots \+ task.queries: got 21, must be at most 20"),
    ],
)
def test_episodes_that_there_cannot_be_are_refused(make_fresh, lines, message):
    with pytest.raises(UserError, match=message):
        make_fresh("omniglot", *lines)
