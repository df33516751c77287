"""CIFAR-10's layouts, at a dozen images, through the real readers."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from metalearn.registry import UserError
from tasks import cifar, sources
from tasks.cifar import read_cifar10
from tasks.files import DataFile

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
LABELS = [int(label) for label in RANDOM.integers(0, 10, 12)]


def sha256(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def batch(part):
    """Two images as Python 2 and the numpy of its time pickled them: byte keys, numpy.core."""
    rows = slice(2 * part, 2 * part + 2)
    value = {b"batch_label": b"x", b"labels": LABELS[rows], b"data": PIXELS[rows].reshape(2, -1)}
    return pickle.dumps(value, protocol=3).replace(b"cnumpy._core", b"cnumpy.core")


def parquet(rows, encoded=None):
    images = encoded or [png(PIXELS[row]) for row in rows]
    table = pyarrow.table(
        {
            "img": pyarrow.array([{"bytes": image, "path": None} for image in images]),
            "label": pyarrow.array([LABELS[row] for row in rows], pyarrow.int64()),
        }
    )
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """lay(names): files of these contents under a new data_dir, known to `sources` by their digests."""
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "cache"))
    data_dir = tmp_path / "data"

    def write(place, content):
        path = data_dir / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def layout(*kinds, images=None):
        batches = [batch(part) for part in range(6)]
        places = [file.places for file in sources.CIFAR10_BATCHES]
        known = [DataFile(sha256(b), place) for b, place in zip(batches, places, strict=True)]
        monkeypatch.setattr(sources, "CIFAR10_BATCHES", known)
        packed = archive(dict(zip([place[0] for place in places], batches, strict=True)))
        replaced = sources.CIFAR10_ARCHIVE._replace(digest=sha256(packed))
        monkeypatch.setattr(sources, "CIFAR10_ARCHIVE", replaced)
        tables = [parquet(range(10), images), parquet(range(10, 12))]
        lossy = [
            file._replace(digest=sha256(table))
            for file, table in zip(sources.CIFAR10_LOSSY, tables, strict=True)
        ]
        monkeypatch.setattr(sources, "CIFAR10_LOSSY", lossy)
        files = {"batches": (known, batches), "archive": ([replaced], [packed]), "parquet": (lossy, tables)}
        for kind in kinds:
            for file, content in zip(*files[kind], strict=True):
                write(file.places[0], content)
        return data_dir

    return layout


def archive(members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["batches", "archive", "parquet"])
def test_every_layout_gives_the_same_images(lay, kind):
    data = read_cifar10(lay(kind), download=False)
    assert torch.equal(data.x, torch.tensor(PIXELS))
    assert data.y.tolist() == LABELS
    assert data.test == 2
    assert data.comparable == (kind != "parquet")
    assert ("lossy" in data.provenance) == (kind == "parquet")


@pytest.mark.parametrize("original", ["batches", "archive"])
def test_the_original_comes_before_the_lossy_copy(lay, original):
    assert read_cifar10(lay("parquet", original), download=False).comparable


def test_an_incomplete_original_is_not_read(lay):
    data_dir = lay("batches")
    (data_dir / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(
        UserError, match=r"no file .*cifar-10-python.tar.gz.*or its folder cifar-10-batches-py/"
    ):
        read_cifar10(data_dir, download=False)


def test_an_altered_batch_is_refused_before_it_is_unpickled(lay, monkeypatch):
    data_dir = lay("batches")
    monkeypatch.setattr(cifar, "_ArrayUnpickler", None)
    path = data_dir / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"test_batch: truncated or altered: expected sha256"):
        read_cifar10(data_dir, download=False)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("was-unpickled",)


def test_a_pickle_can_name_nothing_but_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for payload in (Hostile(), np.random.default_rng(0), np.save):
        with pytest.raises(pickle.UnpicklingError, match="does not belong in a CIFAR-10 batch"):
            cifar._from_batches([pickle.dumps(payload)])
    assert list(tmp_path.iterdir()) == []


def test_a_huge_image_is_refused_before_it_is_decoded(lay):
    sink = io.BytesIO()
    Image.new("1", (6000, 6000)).save(sink, "PNG")
    data_dir = lay("parquet", images=[sink.getvalue()] * 10)
    with pytest.raises(UserError, match=r"got an image of \(6000, 6000\) pixels, must be \(32, 32\)"):
        read_cifar10(data_dir, download=False)


def test_decoded_images_are_kept(lay, tmp_path, monkeypatch):
    data_dir = lay("batches")
    first = read_cifar10(data_dir, download=False)
    monkeypatch.setattr(cifar, "_from_batches", None)
    again = read_cifar10(data_dir, download=False)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".pt"]


@pytest.mark.parametrize("fault", ["flipped", "cut", "emptied", "other"])
def test_a_broken_cache_is_made_anew(lay, tmp_path, fault):
    data_dir = lay("batches")
    read_cifar10(data_dir, download=False)
    (kept,) = (tmp_path / "cache").iterdir()
    content = bytearray(kept.read_bytes())
    place = content.find(PIXELS[4].tobytes()[:64])
    assert place > 0
    content[place] ^= 1
    spoiled = {"flipped": content, "cut": content[: len(content) // 2], "emptied": b"", "other": b"PK" * 99}
    kept.write_bytes(spoiled[fault])
    assert torch.equal(read_cifar10(data_dir, download=False).x, torch.tensor(PIXELS))
    assert torch.equal(torch.load(kept, weights_only=True)["x"], torch.tensor(PIXELS))


def test_without_a_cache_folder_it_works_all_the_same(lay, tmp_path, monkeypatch):
    data_dir = lay("batches")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "file"))
    assert torch.equal(read_cifar10(data_dir, download=False).x, torch.tensor(PIXELS))
