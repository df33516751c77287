"""Texts: alphabets, counts, continuation and coverage."""

import math
import re

import pytest
import torch

from metalearn.registry import UserError
from tasks import corpora

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
