"""WMT'14: from plain files or archives, encoded once into files that are mapped."""

import gzip
import io
import tarfile

import pytest
import torch

from metalearn.registry import UserError
from metalearn.task import END, PADDING
from tasks import phrases

PAIRS = phrases.make_pairs(260)
PARTS = {"train": PAIRS[:200], "valid": PAIRS[200:230], "test": PAIRS[230:]}
SMALL = ("batch=8", "evaluation_batch=20", "pieces=150", "coverage=1.0", "piece_pairs=200", "pool=4")


def write_plain(folder, parts=PARTS):
    (folder / "wmt14_en_fr").mkdir(parents=True)
    for split, pairs in parts.items():
        for side, language in enumerate(("en", "fr")):
            text = "".join(pair[side] + "\n" for pair in pairs)
            (folder / "wmt14_en_fr" / f"{split}.{language}").write_text(text)
    return folder


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def sgm(pairs, side):
    lines = [f'<seg id="{k}">{pair[side].replace("&", "&amp;")}</seg>' for k, pair in enumerate(pairs, 1)]
    return "\n".join(["<srcset>", '<doc docid="a">', *lines, "</doc>", "</srcset>"]).encode()


def write_archives(folder):
    """The same text as the archives have it."""
    here = folder / "wmt14_en_fr"
    here.mkdir(parents=True)
    names = {
        "training-parallel-europarl-v7.tgz": "training/europarl-v7.fr-en",
        "training-parallel-commoncrawl.tgz": "commoncrawl.fr-en",
        "training-parallel-un.tgz": "un/undoc.2000.fr-en",
        "training-parallel-nc-v9.tgz": "training/news-commentary-v9.fr-en",
        "training-giga-fren.tar": "giga-fren.release2.fixed",
    }
    for place, (name, stem) in enumerate(names.items()):
        with tarfile.open(here / name, "w:gz" if name.endswith("gz") else "w") as archive:
            for side, language in enumerate(("en", "fr")):
                lines = [pair[side] + "\n" for pair in PARTS["train"][40 * place : 40 * place + 40]]
                content = "".join(lines).encode()
                packed = stem.startswith("giga")
                member = f"{stem}.{language}{'.gz' if packed else ''}"
                add(archive, member, gzip.compress(content) if packed else content)
                add(archive, f"{stem.replace('fr-en', 'de-en')}.other", b"x")
    with tarfile.open(here / "dev.tgz", "w:gz") as archive:
        for year, pairs in (
            ("2012", PARTS["valid"][:10]),
            ("2013", PARTS["valid"][10:]),
            ("2011", PAIRS[:3]),
        ):
            for side, language in enumerate(("en", "fr")):
                add(
                    archive, f"dev/newstest{year}.{language}", "".join(p[side] + "\n" for p in pairs).encode()
                )
    with tarfile.open(here / "test-full.tgz", "w:gz") as archive:
        add(archive, "test-full/newstest2014-fren-src.en.sgm", sgm(PARTS["test"], 0))
        add(archive, "test-full/newstest2014-fren-ref.fr.sgm", sgm(PARTS["test"], 1))
    return folder


def texts(task, split):
    """All pairs of a sweep as text."""
    return {
        (task.decode(x[0]), task.decode(y)) for b in task.sweep(split) for x, y in zip(b.x, b.y, strict=True)
    }


def test_wmt14_from_plain_files_is_encoded_once(make_fresh, tmp_path, monkeypatch):
    folder = write_plain(tmp_path)
    first = make_fresh("wmt14_en_fr", *SMALL, data_dir=folder)
    for split, pairs in PARTS.items():
        assert texts(first, split) == set(pairs)
    assert first.spec.sizes == {
        "train": 200,
        "search_train": 100,
        "search_valid": 100,
        "valid": 30,
        "test": 30,
    }
    assert not first.spec.comparable
    assert type(first.parts["train"].source.symbols).__name__ == "memmap"
    monkeypatch.setattr("tasks.encoded._make", None)
    second = make_fresh("wmt14_en_fr", *SMALL, data_dir=folder)
    assert second.spec == first.spec
    assert torch.equal(second.batch("train", 30).x, first.batch("train", 30).x)
    batches = list(second.sweep("test"))
    answers = [[s for s in row.tolist() if s not in (PADDING, END)] for b in batches for row in b.y]
    assert float(second.score(batches, answers)["bleu"]) == pytest.approx(100.0)


def test_wmt14_from_archives_is_the_same_text(make_fresh, tmp_path):
    plain = make_fresh("wmt14_en_fr", *SMALL, data_dir=write_plain(tmp_path / "plain"))
    packed = make_fresh("wmt14_en_fr", *SMALL, data_dir=write_archives(tmp_path / "packed"))
    for split in PARTS:
        assert texts(packed, split) == texts(plain, split)


def test_chunks_do_not_show(make_fresh, tmp_path, monkeypatch):
    whole = make_fresh("wmt14_en_fr", *SMALL, data_dir=write_plain(tmp_path / "whole"))
    monkeypatch.setattr("tasks.encoded.AT_ONCE", 7)
    chunked = make_fresh("wmt14_en_fr", *SMALL, data_dir=write_plain(tmp_path / "chunked"))
    for index in (0, 11):
        assert torch.equal(chunked.batch("train", index).x, whole.batch("train", index).x)


def test_long_and_empty_training_pairs_are_left_out_but_no_others(make_fresh, tmp_path):
    parts = {**PARTS, "train": [*PARTS["train"], ("", "Rien."), ("Nothing.", "")]}
    task = make_fresh("wmt14_en_fr", *SMALL, "longest=20", data_dir=write_plain(tmp_path, parts))
    lengths = [max(len(task.encode(a)), len(task.encode(b))) - 1 for a, b in PARTS["train"]]
    assert 0 < task.spec.sizes["train"] == sum(length <= 20 for length in lengths) < 200
    assert task.spec.sizes["valid"] == 30
    assert all(batch.x.shape[2] <= 21 for batch in task.sweep("train"))


def test_wmt14_says_what_is_missing(make_fresh, tmp_path):
    from tasks.catalogue import availability

    folder = write_plain(tmp_path)
    assert availability("wmt14_en_fr", folder) == "in data_dir"
    (folder / "wmt14_en_fr" / "valid.fr").unlink()
    assert "wmt14_en_fr/valid.en and .fr (or dev.tgz)" in availability("wmt14_en_fr", folder)
    from tasks.wmt14 import read

    with pytest.raises(UserError, match=r"lacks wmt14_en_fr/valid.en.*put them there"):
        read(make_fresh("phrases").options, folder)


def test_sides_of_different_lengths_are_refused(make_fresh, tmp_path):
    folder = write_plain(tmp_path)
    path = folder / "wmt14_en_fr" / "train.fr"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"train\.fr : ends before line 200, which .*train\.en"):
        make_fresh("wmt14_en_fr", *SMALL, data_dir=folder)
