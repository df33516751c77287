"""Translation tasks: French, pieces, batches by length, BLEU."""

import random
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.task import BEGIN, END, PADDING
from tasks import french, lexicon, phrases
from tasks.word_pieces import WordPieces

NUMBERS = {  # as grammars of before 1990 write them
    0: "zéro", 1: "un", 16: "seize", 17: "dix-sept", 20: "vingt", 21: "vingt et un", 22: "vingt-deux",
    31: "trente et un", 60: "soixante", 61: "soixante et un", 69: "soixante-neuf", 70: "soixante-dix",
    71: "soixante et onze", 72: "soixante-douze", 77: "soixante-dix-sept", 79: "soixante-dix-neuf",
    80: "quatre-vingts", 81: "quatre-vingt-un", 88: "quatre-vingt-huit", 90: "quatre-vingt-dix",

    91: "quatre-vingt-onze", 99: "quatre-vingt-dix-neuf", 100: "cent", 101: "cent un",

    171: "cent soixante et onze",
    180: "cent quatre-vingts", 200: "deux cents", 201: "deux cent un", 280: "deux cent quatre-vingts",
    999: "neuf cent quatre-vingt-dix-neuf",
    1000: "mille", 1001: "mille un",
    1980: "mille neuf cent quatre-vingts",
    1999: "mille neuf cent quatre-vingt-dix-neuf", 2000: "deux mille",
    80_000: "quatre-vingt mille",
    200_000: "deux cent mille", 280_200: "deux cent quatre-vingt mille deux cents",
    3300: "trois mille trois cents",
}  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_french_numbers(number):
    assert french.french_number(number) == NUMBERS[number]


def test_numbers_agree_and_english_ones_are_written_out():
    assert french.french_number(21, feminine=True) == "vingt et une"
    assert french.french_number(81, feminine=True) == "quatre-vingt-une"
    assert french.french_number(71, feminine=True) == "soixante et onze"
    written = {21: "twenty-one", 105: "one hundred and five", 2380: "two thousand three hundred and eighty"}
    written |= {1001: "one thousand and one", 90: "ninety", 12_300: "twelve thousand three hundred"}
    assert {number: french.english_number(number) for number in written} == written
    assert len({french.french_number(n) for n in range(3000)}) == 3000


@pytest.mark.parametrize(
    ("hour", "minutes", "english", "expected"),
    [
        (1, 0, "one o'clock", "une heure"),
        (3, 30, "half past three", "trois heures et demie"),
        (12, 30, "half past noon", "midi et demi"),
        (8, 45, "a quarter to nine", "neuf heures moins le quart"),
        (11, 55, "five to noon", "midi moins cinq"),
        (12, 40, "twenty to one", "une heure moins vingt"),
        (2, 15, "a quarter past two", "deux heures et quart"),
        (2, 25, "twenty-five past two", "deux heures vingt-cinq"),
    ],
)
def test_times_of_day(hour, minutes, english, expected):
    assert phrases.clock(hour, minutes) == (english, expected)


def noun(name):
    everything = lexicon.PERSONS + lexicon.ANIMALS + lexicon.THINGS + lexicon.FOODS + lexicon.BUILDINGS
    return next(noun for noun in everything if noun.english == name)


def adjective(name):
    everything = lexicon.QUALITIES + lexicon.COLOURS + lexicon.STATES + lexicon.MOODS
    return next(adjective for adjective in everything if adjective.english == name)


def all_phrases(name, quality, negated=False):
    """What is said of a noun, by its English."""
    said, rng = {}, random.Random(0)
    for _ in range(400):
        phrase = phrases.noun_phrase(rng, noun(name), [adjective(quality)], negated)
        said[" ".join(phrase.english)] = french.joined(phrase.french)[:-1].lower()
    return said


NOUN_PHRASES = [  # noun, adjective, negated, English, French
    ("man", "old", False, "this old man", "ce vieil homme"),
    ("man", "old", False, "the man", "l'homme"),
    ("man", "old", False, "these old men", "ces vieux hommes"),
    ("island", "beautiful", False, "my beautiful island", "ma belle île"),
    ("island", "beautiful", False, "my island", "mon île"),
    ("island", "beautiful", False, "some beautiful islands", "de belles îles"),
    ("island", "beautiful", False, "some islands", "des îles"),
    ("island", "beautiful", False, "an island", "une île"),
    ("bird", "new", False, "this bird", "cet oiseau"),
    ("bird", "new", False, "a new bird", "un nouvel oiseau"),
    ("bird", "new", True, "any new birds", "de nouveaux oiseaux"),
    ("bird", "new", True, "a bird", "d'oiseau"),
    ("house", "white", False, "the white house", "la maison blanche"),
    ("house", "white", False, "some white houses", "des maisons blanches"),
    ("house", "white", True, "any white houses", "de maisons blanches"),
    ("horse", "big", False, "his big horses", "ses grands chevaux"),
    ("horse", "big", False, "two big horses", "deux grands chevaux"),
    ("woman", "happy", False, "their happy women", "leurs femmes heureuses"),
]


@pytest.mark.parametrize(("name", "quality", "negated", "english", "expected"), NOUN_PHRASES)
def test_noun_phrases_agree(name, quality, negated, english, expected):
    assert all_phrases(name, quality, negated)[english] == expected


def test_verbs_are_conjugated_and_negated():
    buy, see = lexicon._BUY, lexicon._SEE
    assert buy.conjugate("present", 0, True) == ["n'", "achète", "pas"]
    assert buy.conjugate("past", 5, True) == ["n'", "ont", "pas", "acheté"]
    assert see.conjugate("future", 3, True) == ["ne", "verrons", "pas"]
    assert lexicon._LIKE.conjugate("present", 4, False) == ["aimez"]
    assert lexicon._EAT.conjugate("future", 2, False) == ["mangera"]
    assert see.english_words("past", True, True) == "did not see"
    assert lexicon._CARRY.english_words("present", True, False) == "carries"


def test_every_sentence_is_well_formed():
    pairs = phrases.make_pairs(3000)
    assert len({english for english, _ in pairs}) == 3000
    for english, said in pairs:
        for text in (english, said):
            assert text[0].isupper()
            assert text.endswith(".")
            assert "  " not in text
            assert " ." not in text
        words = said[:-1].lower().replace("'", "' ").split()
        for word, following in pairwise(words):
            vowel = following[0] in "aeiouéêîœ" and following != "onze"  # nothing is elided before onze
            assert not (vowel and word in ("le", "la", "de", "ne", "je", "ce", "ma", "sa"))
            assert word not in ("l'", "d'", "n'", "j'") or following[0] in french.VOWELS
    assert phrases.make_pairs(100) == pairs[:100]
    born = [french for english, french in pairs if english.endswith("nineteen eighty.")]
    assert born
    assert all(french.endswith("neuf cent quatre-vingt.") for french in born)  # a rank takes no s


def test_splits_share_no_sentence(make):
    task = make("phrases")
    texts = {}
    for split in ("train", "valid", "test"):
        rows = [row for batch in task.sweep(split) for row in batch.x[:, 0]]
        texts[split] = {task.decode(row) for row in rows}
        assert len(texts[split]) == len(rows) == task.spec.sizes[split]
    assert not texts["train"] & texts["valid"]
    assert not (texts["train"] | texts["valid"]) & texts["test"]


def test_pieces_give_the_text_back(make):
    task = make("phrases")
    for text in ("The old house is big.", "He did not buy any apples."):
        symbols = task.encode(text)
        assert (symbols.dtype, int(symbols[-1])) == (torch.int64, END)
        assert task.decode(symbols) == task.decode(symbols.tolist()) == text
    batch = next(task.sweep("test"))
    assert [task.decode(row) for row in batch.y] == task._references(batch)
    assert len(task.encode("$")) > 1  # a character that is in no sentence


def test_pieces_are_a_function_of_the_text():
    sentences = [text for pair in phrases.make_pairs(300) for text in pair]
    first, second = (WordPieces.learn(sentences, 200, 1.0) for _ in range(2))
    assert first.model == second.model
    assert len(first) == 200
    with pytest.raises(UserError, match=r"task\.pieces: got 60000.*lower it"):
        WordPieces.learn(sentences, 60000, 1.0)
    with pytest.raises(UserError, match=r"task\.pieces: got 10.*raise it"):
        WordPieces.learn(sentences, 10, 1.0)


def test_a_batch_is_filled_up_and_shifted(make):
    task = make("phrases")
    batch = task.batch("train", 7)
    source, target = batch.x.unbind(1)
    for row in range(len(batch.y)):
        length = int((batch.y[row] != PADDING).sum())
        assert target[row, 0] == BEGIN
        assert torch.equal(target[row, 1:length], batch.y[row, : length - 1])
        assert batch.y[row, length - 1] == END
        assert not batch.y[row, length:].any()
        assert not target[row, length:].any()
        words = source[row][source[row] != PADDING]
        assert words[-1] == END
        assert (words == END).sum() == 1
    assert batch.x.shape[2] == max(int((source != 0).sum(1).max()), int((batch.y != 0).sum(1).max()))


def test_a_pass_takes_every_pair_once_and_batches_hold_like_lengths(make):
    task = make("phrases", "batch=100", "pool=8")
    count = task.batches("train")
    assert count == 80
    texts, spread, padding = [], [], 0.0
    for index in range(count):
        batch = task.batch("train", index)
        texts += [task.decode(row) for row in batch.y]
        lengths = (batch.y != PADDING).sum(1)
        padding += float((batch.y == PADDING).double().mean()) / count
        spread.append(float(lengths.double().mean()))
    every = [task.decode(row) for batch in task.sweep("train") for row in batch.y]
    assert sorted(texts) == sorted(every)
    assert padding < 0.25
    assert spread != sorted(spread)
    assert not torch.equal(task.batch("train", count).x, task.batch("train", 0).x)


def test_loss_is_the_mean_over_pieces(make):
    task = make("phrases")
    batch = task.batch("valid", 0)
    logits = torch.randn(*batch.y.shape, task.spec.outputs, generator=torch.Generator().manual_seed(0))
    here = batch.y != PADDING
    expected = -logits.log_softmax(-1).gather(-1, batch.y.unsqueeze(-1)).squeeze(-1)[here].mean()
    torch.testing.assert_close(task.loss(logits, batch), expected)
    assert F.cross_entropy(logits.flatten(0, 1), batch.y.flatten()) != expected


def test_bleu_of_the_references_is_100_and_less_of_others(make):
    task = make("phrases")
    batches = list(task.sweep("test"))
    answers = [[s for s in row.tolist() if s not in (PADDING, END)] for batch in batches for row in batch.y]
    assert float(task.score(batches, answers)["bleu"]) == pytest.approx(100.0)
    assert float(task.score(batches, answers[1:] + answers[:1])["bleu"]) < 30
    assert float(task.score(batches, [[]] * len(answers))["bleu"]) == 0.0
    assert float(task.score(batches[:2], answers[:250])["bleu"]) == pytest.approx(100.0)
    with pytest.raises(ValueError, match="1 answers to 500"):
        task.score(batches, answers[:1])


def test_bleu_by_hand(make):
    """One sentence: four-gram precisions of the words and the full stop, which 13a parts from its word."""
    task = make("phrases", "evaluation_batch=1", "test_pairs=1")
    (batch,) = task.sweep("test")
    (reference,) = task._references(batch)
    words = reference[:-1].split()
    shortened = " ".join(words[:-1]) + "."
    n = len(words)  # tokens of the answer: words but one, and the full stop
    precisions = [(n - order - (order > 0)) / (n - order) for order in range(4)]
    expected = 100 * torch.tensor(precisions).log().mean().exp() * torch.tensor(1 - (n + 1) / n).exp()
    found = task.score([batch], [task.encode(shortened)[:-1].tolist()])["bleu"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)
