"""enwik8 on a small file in its place: where it is found, what its symbols are, what is refused."""

import io
import zipfile

import pytest
import torch

from metalearn.registry import UserError
from tasks import corpora, files, sources
from tasks.catalogue import availability

TEXT = ("<page>\n\t<title>Caf\u00e9 \u65e5\u672c \U0001f600</title>\n" * 40).encode() + bytes((0xF4, 0x8F))
SPLITS = ("train", "valid", "test")


def zipped(content, member="enwik8"):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return sink.getvalue()


@pytest.fixture
def wikipedia(tmp_path, monkeypatch):
    """wikipedia(place, content): a data_dir with a file there; `sources` knows TEXT as the true content."""
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "ENWIK8_COUNTS", {"symbols": len(set(TEXT)), "bytes": len(TEXT)})
    origin = tmp_path / "origin.zip"
    origin.write_bytes(zipped(TEXT))
    digest = files.digest_of(TEXT, sources.ENWIK8.digest)
    known = sources.ENWIK8._replace(digest=digest, url=origin.as_uri())
    monkeypatch.setattr(sources, "ENWIK8", known)

    def lay(place=None, content=b""):
        folder = tmp_path / "data"
        if place:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content)
        return folder

    return lay


PLACES = [
    ("enwik8/enwik8.zip", zipped(TEXT)),
    ("enwik8.zip", zipped(TEXT)),
    ("enwik8/enwik8", TEXT),
    ("enwik8", TEXT),
    (None, b""),
]


@pytest.mark.parametrize(("place", "content"), PLACES)
def test_is_read_from_every_place_and_from_the_net(wikipedia, place, content):
    corpus = corpora.read("enwik8", wikipedia(place, content), download=place is None)
    assert b"".join(corpus.parts[split] for split in SPLITS) == TEXT
    assert [ord(symbol) for symbol in corpus.alphabet] == sorted(set(TEXT))


def test_a_download_is_kept_as_it_came(wikipedia):
    folder = wikipedia()
    assert not corpora.read("enwik8", folder, download=True).words
    assert (folder / "enwik8" / "enwik8.zip").read_bytes() == zipped(TEXT)


@pytest.fixture
def task(wikipedia, make_fresh):
    lines = ("batch=4", "time=9", "evaluation_batch=3", "evaluation_time=20")
    return make_fresh("enwik8", *lines, data_dir=wikipedia("enwik8.zip", zipped(TEXT)))


def test_symbols_are_bytes(task):
    assert task.spec.sizes["valid"] == len(TEXT) * 95 // 100 - len(TEXT) * 90 // 100
    whole = torch.cat([task.symbols[split] for split in SPLITS])
    assert whole.dtype == torch.uint8
    alphabet = sorted(set(TEXT))
    assert bytes(alphabet[place] for place in whole.tolist()) == TEXT
    assert (task.spec.outputs, task.spec.metric) == (len(alphabet), "bits")


def test_batches_are_numbers_of_symbols_that_continue_each_other(task):
    first, second = task.batch("train", 0), task.batch("train", 1)
    assert (first.x.shape, first.x.dtype, first.y.dtype) == ((4, 9), torch.int64, torch.int64)
    row = torch.cat([first.x[0], second.x[0]])
    assert task.decode(row) == TEXT[:18].decode()
    assert torch.equal(first.y[:, :-1], first.x[:, 1:])
    assert sum(batch.y.numel() for batch in task.sweep("test")) >= task.spec.sizes["test"] - 3


def test_text_is_written_and_read_as_utf8(task):
    text = "Caf\u00e9 \u65e5\u672c \U0001f600\n"
    symbols = task.encode(text)
    assert (len(symbols), symbols.dtype) == (len(text.encode()), torch.int64)
    assert task.decode(symbols) == text
    assert task.decode(symbols[:4]) == "Caf\ufffd"  # half of a character
    assert torch.equal(task.encode(text.split()[0]), symbols[:5])
    with pytest.raises(UserError, match=r"'Z' is not among the \d+ symbols of enwik8"):
        task.encode("Zebra")


@pytest.mark.parametrize(
    ("place", "content", "what"),
    [
        ("enwik8/enwik8", TEXT[:-1], "found sha1:"),
        ("enwik8/enwik8.zip", zipped(TEXT[:-1]), "found sha1:"),
        ("enwik8/enwik8.zip", zipped(TEXT)[:-20], "does not unpack"),
        ("enwik8/enwik8.zip", zipped(TEXT, "other"), "There is no item named 'enwik8'"),
    ],
)
def test_another_file_is_refused(wikipedia, place, content, what):
    with pytest.raises(UserError, match="truncated or altered: expected sha1:") as error:
        corpora.read("enwik8", wikipedia(place, content), download=False)
    assert what in str(error.value)


def test_an_archive_that_unpacks_to_too_much_is_refused(wikipedia, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", len(TEXT) - 1)
    with pytest.raises(UserError, match="too large"):
        corpora.read("enwik8", wikipedia("enwik8.zip", zipped(TEXT)), download=False)


def test_other_counts_are_refused(wikipedia, monkeypatch):
    monkeypatch.setitem(corpora.ENWIK8_COUNTS, "symbols", 204)
    with pytest.raises(UserError, match=r"enwik8: got {'symbols': \d+, .* must be {'symbols': 204, "):
        corpora.read("enwik8", wikipedia("enwik8", TEXT), download=False)


def test_what_is_missing_and_what_would_do(wikipedia):
    folder = wikipedia()
    with pytest.raises(UserError, match=r"no file .*enwik8\.zip.* \(or the unpacked enwik8/enwik8\)"):
        corpora.read("enwik8", folder, download=False)
    assert availability("enwik8", folder).startswith("missing: put enwik8/enwik8.zip (or the unpacked")
    assert availability("enwik8", wikipedia("enwik8", TEXT)) == "in data_dir"


@pytest.mark.slow
def test_the_true_file_has_the_papers_sizes(make):
    """Section 4.4 of Ha, Dai and Le 2017."""
    spec = make("enwik8").spec
    assert [spec.outputs, *(spec.sizes[split] for split in SPLITS)] == [205, 90_000_000, 5_000_000, 5_000_000]
