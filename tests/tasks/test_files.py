"""Data files: found, refused, fetched; every message names the file, the digests and the remedy."""

import gzip
import hashlib
import shutil
import urllib.error
import urllib.request

import pytest

from metalearn.registry import UserError
from tasks import files, sources
from tasks.catalogue import availability
from tasks.files import DataFile

SMALL = {  # task: its folder, one file of it
    "tiny_shakespeare": ("tinyshakespeare", "input.txt"),
    "ptb_char": ("ptb", "ptb.test.txt"),
    "ptb_word": ("ptb", "ptb.valid.txt"),
    "mnist": ("mnist", "t10k-labels-idx1-ubyte.gz"),
    "cifar10": ("cifar10", "test-00000-of-00001.parquet"),
}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(url, timeout):  # noqa: ARG001
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def copy(data_dir, tmp_path):
    """copy(task): a private copy of the task's folder, and the path of the file to spoil."""

    def get(name):
        folder, file = SMALL[name]
        for path in (data_dir / folder).iterdir():
            target = tmp_path / folder / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        return tmp_path / folder / file

    return get


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path):
    other = sorted(p for p in path.parent.iterdir() if p != path)
    path.write_bytes(other[0].read_bytes() if other else b"something else")


SPOIL = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": flip_a_byte,
    "swapped": swap,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
}


@pytest.mark.parametrize("fault", SPOIL)
@pytest.mark.parametrize("name", SMALL)
def test_altered_files_are_refused(make_fresh, copy, name, fault):
    path = copy(name)
    SPOIL[fault](path)
    with pytest.raises(UserError) as caught:
        make_fresh(name, data_dir=path.parents[1])
    message = str(caught.value)
    assert message.startswith(f"{path}: truncated or altered: expected ")
    expected, found = message.split("expected ")[1].split(", found ")
    digest = next(file.digest for file in all_files() if path.name in [p.split("/")[-1] for p in file.places])
    assert expected == digest
    assert found.startswith((digest.split(":")[0], "none, for it does not unpack"))
    assert f"({path.stat().st_size} bytes)" in message
    assert "delete it and put a good copy there, or let it be downloaded (download=true)" in message


def all_files():
    return [
        *sources.MNIST.values(), *sources.PTB.values(), sources.TINY_SHAKESPEARE,
        *sources.CIFAR10_LOSSY, *sources.CIFAR10_BATCHES, sources.CIFAR10_ARCHIVE,
    ]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_missing_file_is_named_with_its_places_and_remedy(make_fresh, tmp_path, name):
    with pytest.raises(UserError) as caught:
        make_fresh(name, data_dir=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no file {tmp_path}/")
    assert "download=false forbids to fetch it; put it there" in message
    assert "data_dir=PATH or METALEARN_DATA_DIR" in message


@pytest.mark.usefixtures("no_network")
def test_without_network_the_message_is_the_same(tmp_path):
    with pytest.raises(UserError, match=r"no file .*input\.txt, and https://\S+ did not answer .*no route"):
        files.read(sources.TINY_SHAKESPEARE, tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


CONTENT = b"what the file says" * 100


@pytest.fixture
def served(tmp_path, monkeypatch):
    """served(content): a file that is fetched from an address where `content` lies; its own cache."""
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "cache"))

    def serve(content, name="set/file.txt"):
        origin = tmp_path / ("origin.gz" if name.endswith(".gz") else "origin")
        origin.write_bytes(content)
        digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        return DataFile(digest, (name,), origin.as_uri())

    return serve


def test_a_download_is_kept_and_read_again(served, tmp_path, no_network_after):
    file = served(CONTENT)
    assert files.read(file, tmp_path / "data", download=True) == CONTENT
    no_network_after()
    assert files.read(file, tmp_path / "data", download=True) == CONTENT
    assert [path.name for path in (tmp_path / "data" / "set").iterdir()] == ["file.txt"]


@pytest.fixture
def no_network_after(monkeypatch):
    def cut():
        monkeypatch.setattr(urllib.request, "urlopen", None)

    return cut


def test_a_packed_download_is_verified_unpacked(served, tmp_path):
    file = served(gzip.compress(CONTENT), "set/file.gz")
    assert files.read(file, tmp_path, download=True) == CONTENT
    assert gzip.decompress((tmp_path / "set/file.gz").read_bytes()) == CONTENT


def test_a_wrong_download_is_not_kept(served, tmp_path):
    with pytest.raises(UserError, match="origin: truncated or altered: expected sha256"):
        files.read(served(CONTENT[:-1]), tmp_path / "data", download=True)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "cache").exists()


def test_a_data_folder_that_cannot_be_written_leaves_the_download_in_the_cache(served, tmp_path):
    blocked = tmp_path / "data"
    blocked.write_text("a file where the folder should be")
    file = served(CONTENT)
    assert files.read(file, blocked, download=True) == CONTENT
    assert files.find(file, blocked) == tmp_path / "cache" / "set/file.txt"


def test_a_packed_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 1000)
    (tmp_path / "file.gz").write_bytes(gzip.compress(bytes(100_000)))
    file = DataFile(f"sha256:{hashlib.sha256(bytes(100_000)).hexdigest()}", ("file.gz",))
    with pytest.raises(UserError, match="does not unpack"):
        files.read(file, tmp_path, download=False)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with files.replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_torchvisions_mnist_layout_reads_the_same(make, make_fresh, data_dir, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in (data_dir / "mnist").iterdir():
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    task = make_fresh("mnist", data_dir=tmp_path)
    assert task.spec.digest == make("mnist").spec.digest
    assert availability("mnist", tmp_path) == "in data_dir"


def test_availability(data_dir, tmp_path, monkeypatch):
    for name in ("mnist", "ptb_char", "ptb_word", "tiny_shakespeare"):
        assert availability(name, data_dir) == "in data_dir"
    assert availability("digits", tmp_path) == "embedded"
    assert availability("ptb_word", tmp_path) == (
        f"missing: put ptb/ptb.train.txt, ptb/ptb.valid.txt, ptb/ptb.test.txt under {tmp_path}, "
        "or let download=true fetch it"
    )
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(data_dir))
    assert availability("mnist", tmp_path) == "cached"
    assert availability("cifar10", data_dir) == "in data_dir, lossy copy: not comparable"
