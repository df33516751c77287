"""Texts: alphabets, counts, continuation and coverage."""

import io
import math
import re
import zipfile

import pytest
import torch

from metalearn.registry import UserError
from metalearn.rng import generator
from tasks import corpora, files, sources, windows

TEXTS = ["python_docs", "tiny_shakespeare", "ptb_char", "ptb_word"]
SPLITS = ("train", "valid", "test", "search_train", "search_valid")
COUNTS = {  # papers/hypernetworks.md section 4; darts.md section 5 for words
    "ptb_char": (50, 5_017_482, 393_042, 442_423),
    "ptb_word": (10_000, 929_589, 73_760, 82_430),
    "tiny_shakespeare": (65, 1_003_854, 55_770, 55_770),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(make, name):
    spec = make(name).spec
    assert (spec.outputs, *(spec.sizes[split] for split in SPLITS[:3])) == COUNTS[name]


@pytest.mark.parametrize("name", TEXTS)
def test_search_halves_are_train(make, name):
    symbols = make(name).symbols
    halves = torch.cat([symbols["search_train"], symbols["search_valid"]])
    assert torch.equal(halves, symbols["train"])
    assert len(symbols["search_train"]) - len(symbols["search_valid"]) in (0, 1)


@pytest.mark.parametrize("name", TEXTS)
def test_batches_continue_each_other_and_start_again(make, name):
    task = make(name, "batch=5", "time=7")
    last = task.batches("valid")
    rows = torch.cat([task.batch("valid", index).x for index in range(last)], dim=1)
    targets = torch.cat([task.batch("valid", index).y for index in range(last)], dim=1)
    text, length = task.symbols["valid"].long(), (task.spec.sizes["valid"] - 1) // 5
    assert length - rows.shape[1] < 7
    for row in range(5):
        expected = text[row * length : row * length + rows.shape[1] + 1]
        assert torch.equal(rows[row], expected[:-1])
        assert torch.equal(targets[row], expected[1:])
    assert torch.equal(task.batch("valid", last).x, task.batch("valid", 0).x)
    assert task.batch("valid", last).key != task.batch("valid", 0).key


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("split", SPLITS)
def test_sweep_in_one_row_scores_every_symbol_but_the_first_once(make, name, split):
    task = make(name, "evaluation_batch=1", "evaluation_time=10007")
    batches = list(task.sweep(split))
    assert torch.equal(torch.cat([batch.y for batch in batches], 1)[0], task.symbols[split][1:].long())
    assert torch.equal(torch.cat([batch.x for batch in batches], 1)[0], task.symbols[split][:-1].long())


def test_sweep_in_rows_leaves_out_less_than_a_row_has_company(make):
    task = make("python_docs", "evaluation_batch=10")
    scored = sum(batch.y.numel() for batch in task.sweep("test"))
    assert 0 <= task.spec.sizes["test"] - 1 - scored < 10
    assert {len(batch.y) for batch in task.sweep("test")} == {10}


@pytest.mark.parametrize("name", TEXTS)
def test_decode_undoes_encode(make, name):
    task = make(name)
    text = task.decode(task.symbols["test"][:500])
    again = task.encode(text.split(" ") if task.words else text)
    assert torch.equal(again, task.symbols["test"][:500].long())


def test_a_symbol_outside_the_alphabet_is_named(make):
    with pytest.raises(UserError, match=r"'é' is not among the 50 symbols of ptb_char; allowed: '\\n'"):
        make("ptb_char").encode("é")


def test_ptb_characters_are_the_words_with_underscores(make):
    characters, words = make("ptb_char"), make("ptb_word")
    start = words.decode(words.symbols["test"][:60])
    expected = start.replace(" <eos> ", "\n").replace(" ", "_")
    assert characters.decode(characters.symbols["test"][: len(expected)]) == expected


def test_equal_scores_cost_the_alphabet(make):
    task = make("python_docs")
    batch = task.batch("valid", 0)
    metrics = task.metrics(torch.zeros(*batch.x.shape, 96), batch)
    assert metrics["loss"] == pytest.approx(math.log(96))
    assert metrics["bits"] == pytest.approx(math.log2(96))


def test_a_batch_larger_than_the_text_is_refused(make):
    with pytest.raises(UserError, match=r"task.batch x task.time: got 9000 x 100, must be below \d+"):
        make("python_docs", "batch=9000", "time=100")


PLAIN = [
    ("“it’s” – ‘so’ — …", "\"it's\" - 'so' -- ..."),
    ("Stra\u00dfe, 20\u00b0, na\u00efve caf\u00e9", "Strae, 20, naive cafe"),
    ("a\u00a0b\tc", "a b    c"),
    ("one\r\ntwo\rthree\u2028four\n", "one\ntwo\nthree\nfour\n"),
    ("\ufb01ne \u00bd \u65e5\u672c \U0001f600 \x00\x1b[0m", "fine 12   [0m"),
]


@pytest.mark.parametrize(("text", "expected"), PLAIN)
def test_plain_text(text, expected):
    assert corpora.plain(text) == expected


def test_plain_text_stays_in_the_alphabet_whatever_comes():
    everything = "".join(map(chr, range(0x3000)))
    assert set(corpora.plain(everything)) == set(corpora.PRINTABLE)
    assert len(corpora.PRINTABLE) == 96


def test_python_docs_alphabet_does_not_follow_the_text(make, make_fresh, monkeypatch):
    """Another Python's topics give another text over the same symbols."""
    import pydoc_data.topics

    before = make("python_docs")
    text = {"b": "“Zwei” $ `x`\n\n" + "longer text, " * 3000, "a": "eins\n\n" + "“Zwei”  $ `x`"}
    monkeypatch.setattr(pydoc_data.topics, "topics", text)
    after = make_fresh("python_docs")
    assert after.alphabet == before.alphabet == corpora.PRINTABLE
    assert after.spec.outputs == before.spec.outputs == 96
    assert after.spec.digest != before.spec.digest
    assert after.decode(after.symbols["train"][:40]).startswith('eins\n\n"Zwei"  $ `x`\n\nlonger')


def test_python_docs_splits_share_no_paragraph(make):
    task = make("python_docs")
    whole = task.decode(torch.cat([task.symbols[split] for split in SPLITS[:3]]))
    paragraphs = [" ".join(part.split()) for part in re.split("\n\n+", whole)]
    assert len(paragraphs) == len(set(paragraphs)) > 1000


JITTER = ("half_probability=0.05", "time_deviation=5")  # Liu et al. 2019, rnn/train.py
HALVES = ("half_probability=0.05", "time_deviation=0")  # rnn/train_search.py


def lengths(task, split="train", turn=0):
    count = task.batches(split)
    return [task.batch(split, turn * count + index).x.shape[1] for index in range(count)]


@pytest.mark.parametrize("jitter", [JITTER, HALVES])
@pytest.mark.parametrize("split", SPLITS)
def test_a_jittered_pass_reads_every_symbol_once_in_order(make, split, jitter):
    task = make("python_docs", "batch=5", "time=35", *jitter)
    columns, last = (task.spec.sizes[split] - 1) // 5, task.batches(split)
    for turn in (0, 3):
        batches = [task.batch(split, turn * last + index) for index in range(last)]
        rows, targets = (torch.cat([batch[part] for batch in batches], 1) for part in (0, 1))
        text = task.symbols[split][: 5 * columns + 1].long()
        assert torch.equal(rows.flatten(), text[:-1])
        assert torch.equal(targets.flatten(), text[1:])
        assert all(5 <= batch.x.shape[1] <= 55 for batch in batches)
    assert lengths(task, split, 0) != lengths(task, split, 1)


DRAWN = [  # probability of a half, deviation; mean and deviation of what is drawn, rounded down
    (0.0, 5.0, 34.5, 5.0),
    (1.0, 5.0, 17.0, 4.9),  # 17.5, a little clipped at 5
    (0.05, 0.0, 0.95 * 35 + 0.05 * 17, 18 * (0.05 * 0.95) ** 0.5),
]


@pytest.mark.parametrize(("half", "deviation", "mean", "spread"), DRAWN)
def test_lengths_are_drawn_as_in_the_authors_scripts(make, half, deviation, mean, spread):
    lines = ("batch=2", "time=35", f"half_probability={half}", f"time_deviation={deviation}")
    options = make("python_docs", *lines).options
    drawn = windows.draw(options, 100_000, generator("times")).double()
    assert windows.mean_time(options) == pytest.approx(drawn.mean().item(), abs=0.06)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.15)
    assert drawn.std().item() == pytest.approx(spread, abs=0.1)
    assert 5 <= drawn.min() <= drawn.max() <= 55


def test_a_pass_hardly_changes_what_was_drawn(make):
    task = make("python_docs", "batch=2", "time=35", *HALVES)
    found = [length for turn in range(4) for length in lengths(task, "train", turn)]
    assert {35, 17} < set(found) <= {34, 35, 36, 16, 17, 18}
    assert found.count(35) > 0.6 * len(found)
    assert 0.03 < sum(length < 20 for length in found) / len(found) < 0.07


def test_jittered_batches_are_a_function_of_seed_split_and_index(make_fresh):
    """Another object, asked in another order, for other splits in between."""
    lines = ("batch=5", "time=35", *JITTER)
    one, two, other = (make_fresh("python_docs", *lines, seed=seed) for seed in (0, 0, 1))
    last = one.batches("train")
    for index in (2 * last + 1, 0, last - 1, last, 5):
        expected, found = one.batch("train", index), two.batch("train", index)
        two.batch("valid", index)
        assert torch.equal(expected.x, found.x)
        assert expected.key == found.key
    assert lengths(one) == lengths(two) != lengths(other)
    assert (
        one.batches("train") == other.batches("train") == round(one.spec.sizes["train"] // 5 / one.mean_time)
    )


@pytest.mark.parametrize(
    ("columns", "count"), [(1, 1), (3, 1), (200, 1), (11, 2), (23, 4), (350, 10), (100, 3)]
)
def test_windows_fit_texts_of_any_size(make, columns, count):
    options = make("python_docs", "batch=5", "time=35", *JITTER).options
    for seed in range(20):
        spans = windows.spans(options, columns, count, generator(seed))
        assert len(spans) == count
        assert sum(time for _, time in spans) == columns
        assert all(time > 0 for _, time in spans)


def test_jitter_needs_room_below_the_time(make):
    with pytest.raises(UserError, match=r"least_time: got 5, must be at most task\.time=4"):
        make("python_docs", "time=4", *JITTER)


def test_the_test_text_is_read_in_rows_of_its_own(make):
    """One row for test, ten for validation: rnn/train.py."""
    task = make("python_docs", "evaluation_batch=10", "test_batch=1", "evaluation_time=1000")
    assert {len(batch.y) for batch in task.sweep("valid")} == {10}
    targets = torch.cat([batch.y for batch in task.sweep("test")], 1)[0]
    assert torch.equal(targets, task.symbols["test"][1:].long())


ARTICLES = {  # a paragraph separator that `str.splitlines` would cut at, empty lines, first appearances
    "train": " \n = Zeta = \n \n alpha beta\u2028 , Zeta \n <unk> @-@ \u00e9\n",
    "valid": " \n alpha \u00e9 \n",
    "test": " = beta\u2028 = \n \n",
}
WORDS = ["<eos>", "=", "Zeta", "alpha", "beta", ",", "<unk>", "@-@", "\u00e9"]


@pytest.fixture
def wikitext(tmp_path, monkeypatch):
    """wikitext(kind): a small corpus in that layout under a data_dir, known to `sources` by its digests."""
    contents = {split: text.encode() for split, text in ARTICLES.items()}
    counts = {"words": 9, "train": 15, "valid": 4, "test": 5}
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "WIKITEXT2_COUNTS", counts)
    for split, content in contents.items():
        known = sources.WIKITEXT2[split]
        digest = files.digest_of(content, known.digest)
        monkeypatch.setitem(sources.WIKITEXT2, split, known._replace(digest=digest))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, content in contents.items():
            archive.writestr(f"wikitext-2/wiki.{split}.tokens", content)
    origin = tmp_path / "origin.zip"
    origin.write_bytes(sink.getvalue())
    digest = files.digest_of(sink.getvalue(), sources.WIKITEXT2_ARCHIVE.digest)
    packed = sources.WIKITEXT2_ARCHIVE._replace(digest=digest, url=origin.as_uri())
    monkeypatch.setattr(sources, "WIKITEXT2_ARCHIVE", packed)

    def lay(kind):
        folder = tmp_path / kind / "wikitext-2"
        folder.mkdir(parents=True)
        for split, content in contents.items() if kind == "files" else ():
            (folder / f"wiki.{split}.tokens").write_bytes(content)
        if kind == "archive":
            (folder / "wikitext-2-v1.zip").write_bytes(sink.getvalue())
        return folder.parent

    return lay


@pytest.mark.parametrize("kind", ["files", "archive", "nothing"])
def test_wikitext2_reads_files_archive_and_download_alike(wikitext, kind):
    corpus = corpora.read("wikitext2", wikitext(kind), download=kind == "nothing")
    assert corpus.alphabet == WORDS
    train = "<eos> = Zeta = <eos> <eos> alpha beta\u2028 , Zeta <eos> <unk> @-@ \u00e9 <eos>"
    assert corpus.parts["train"] == train.replace("\u2028", "").split(" ")


def test_wikitext2_with_other_counts_is_refused(wikitext, monkeypatch):
    monkeypatch.setitem(corpora.WIKITEXT2_COUNTS, "valid", 5)
    with pytest.raises(UserError, match=r"wikitext2: got .*'valid': 4, .* must be .*'valid': 5"):
        corpora.read("wikitext2", wikitext("files"), download=False)


def test_wikitext2_that_is_missing_or_altered_is_refused(wikitext, tmp_path):
    with pytest.raises(UserError, match=r"wikitext-2-v1\.zip.*or the three files wikitext-2/wiki\.train"):
        corpora.read("wikitext2", tmp_path / "none", download=False)
    folder = wikitext("files")
    (folder / "wikitext-2" / "wiki.test.tokens").write_text("another")
    with pytest.raises(UserError, match=r"wiki\.test\.tokens: truncated or altered: expected sha1:"):
        corpora.read("wikitext2", folder, download=False)


def test_more_than_32767_words_are_kept_apart(make_fresh, monkeypatch):
    words = [f"w{place}" for place in range(40_000)]
    parts = {"train": words, "valid": words[::-1], "test": words[:2000]}
    corpus = corpora.Corpus(parts, words, True, "here", "none", "none")
    monkeypatch.setattr(corpora, "read", lambda *_: corpus)
    task = make_fresh("python_docs", "batch=2")
    assert task.decode(task.symbols["valid"][:3]) == "w39999 w39998 w39997"
    assert task.batch("train", 398).x.max() > 35_000


@pytest.mark.slow
def test_published_counts_of_wikitext2(make):
    spec = make("wikitext2").spec
    sizes = {split: spec.sizes[split] for split in SPLITS[:3]}
    assert {"words": spec.outputs, **sizes} == corpora.WIKITEXT2_COUNTS
