"""IAM-OnDB on files made up here, in its format: splits, lengths, both layouts, and what is refused."""

import io
import shutil
import tarfile

import pytest
import torch

from metalearn.registry import UserError
from tasks import catalogue, iam_files
from tasks.iam import VALID


def fresh(make_fresh, data_dir, *overrides):
    return make_fresh("iam", *overrides, data_dir=data_dir)


@pytest.fixture
def copy(pen_lines, tmp_path):
    """A data folder of the test's own."""
    shutil.copytree(pen_lines, tmp_path / "data")
    return tmp_path / "data"


def test_moves_are_differences_of_points_and_lift_at_ends_of_strokes(pen_lines, make_fresh):
    """The first training line against its XML, point by point."""
    task = fresh(make_fresh, pen_lines, "split=official", "scaling=0")
    points = iam_files.lines(pen_lines / "iam_online" / "lineStrokes")[0].points
    expected = torch.tensor(points).diff(dim=0)[:, :2]
    restored = next(task.sweep("train")).y[0, : len(expected), :2] * task.deviation + task.mean
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-4)
    assert task.moves[: len(expected), 2].tolist() == [point[2] for point in points[1:]]
    assert sum(point[2] for point in points) == 3  # strokes


SIZES = {  # lines by split: 18 and 4 of train, 6 of each other list are long enough
    ("graves", 12): {"train": 30, "valid": 6, "test": 0},
    ("official", 12): {"train": 18, "valid": 12, "test": 6},
    ("official", 2): {"train": 20, "valid": 12, "test": 6},
}


@pytest.mark.parametrize(("split", "least"), SIZES)
def test_splits_are_of_forms_and_short_lines_are_left_out(pen_lines, make_fresh, split, least):
    task = fresh(make_fresh, pen_lines, f"split={split}", f"least_points={least}")
    sizes = {name: task.spec.sizes[name] for name in ("train", "valid", "test")}
    assert sizes == SIZES[split, least]
    assert min(task.lengths) >= least - 1
    assert not task.spec.comparable
    assert f"{38 - sum(sizes.values())} of fewer than {least} points left out" in task.spec.provenance


def test_graves_split_has_no_test_set(pen_lines, make_fresh):
    task = fresh(make_fresh, pen_lines, "split=graves")
    with pytest.raises(UserError, match=r"split test has no lines; .*train.test=false"):
        next(task.sweep("test"))


def test_an_archive_gives_the_same_and_is_not_unpacked(copy, pen_lines, make_fresh):
    folder = copy / "iam_online"
    with tarfile.open(folder / "lineStrokes-all.tar.gz", "w:gz") as archive:
        archive.add(folder / "lineStrokes", "lineStrokes")
        odd = tarfile.TarInfo("../../a01-000u-99.txt")
        odd.size = 3
        archive.addfile(odd, io.BytesIO(b"odd"))
    shutil.rmtree(folder / "lineStrokes")
    (folder / "task1").mkdir()
    for path in folder.glob("*.txt"):
        path.rename(folder / "task1" / path.name)
    assert catalogue.availability("iam", copy) == "in data_dir"
    task, other = fresh(make_fresh, copy), fresh(make_fresh, pen_lines)
    assert task.spec == other.spec
    assert torch.equal(task.moves, other.moves)
    assert sorted(path.name for path in folder.iterdir()) == ["lineStrokes-all.tar.gz", "task1"]


def test_missing_files_are_named_with_the_way_to_get_them(copy, tmp_path):
    assert "missing: IAM-OnDB is given to those who register" in catalogue.availability("iam", tmp_path)
    (copy / "iam_online" / VALID).unlink()
    with pytest.raises(UserError, match=r"no lists in .*who register .*trainset.txt"):
        iam_files.found(copy)
    shutil.rmtree(copy / "iam_online" / "lineStrokes")
    with pytest.raises(UserError, match=r"no strokes in .*METALEARN_DATA_DIR"):
        iam_files.found(copy)


BAD = {
    "<WhiteboardCaptureSession>": "ParseError",
    "<a><StrokeSet><Stroke><Point x='1'/></Stroke></StrokeSet></a>": "KeyError",
    "<a><StrokeSet><Stroke><Point x='1' y='nan'/></Stroke></StrokeSet></a>": "out of bounds",
    "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>": "declares entities",
    " " * (iam_files.LARGEST + 1): "is larger than",
}


@pytest.mark.parametrize("text", BAD, ids=list(BAD.values()))
def test_bad_files_are_refused_by_name(copy, make_fresh, text):
    path = next((copy / "iam_online" / "lineStrokes").rglob("*-03.xml"))
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{path.stem}.*{BAD[text]}"):
        fresh(make_fresh, copy)


def test_lists_that_share_a_form_are_refused(copy, make_fresh):
    folder = copy / "iam_online"
    (folder / VALID).write_text((folder / VALID).read_text() + (folder / "trainset.txt").read_text())
    with pytest.raises(UserError, match=r"is in trainset.txt and in testset_v.txt"):
        fresh(make_fresh, copy)


def test_lines_that_are_all_too_short_are_refused(pen_lines, make_fresh):
    with pytest.raises(UserError, match=r"lower task.least_points"):
        fresh(make_fresh, pen_lines, "least_points=300")


def test_a_broken_archive_is_refused(copy, make_fresh):
    shutil.rmtree(copy / "iam_online" / "lineStrokes")
    (copy / "iam_online" / "lineStrokes-all.tar.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match="does not unpack"):
        fresh(make_fresh, copy)
