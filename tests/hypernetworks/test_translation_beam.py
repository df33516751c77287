"""Beam search against all sequences there are, scored one by one."""

import itertools
import math

import pytest
import torch

from metalearn.hypernetworks.translation.beam import coverage_penalty, length_penalty, search
from metalearn.hypernetworks.translation.config import SearchOptions
from metalearn.rng import generator
from metalearn.task import BEGIN, END

PIECES, SOURCE, LONGEST = 6, 8, 4  # 0 to 2 are padding, begin and end
LENGTHS = torch.tensor([8, 6, 3, 1])
PRESENT = torch.arange(SOURCE) < LENGTHS.unsqueeze(1)
SENTENCES = range(len(PRESENT))


def make_options(beam=40, margin=None, alpha=0.2, beta=0.2, ratio=0.0, extra=LONGEST):
    return SearchOptions(beam, margin, alpha, beta, ratio, extra)


def language(prefix, sentence, present):
    """Log-probabilities of the next piece and attention, drawn by what has been said of which sentence."""
    rng = generator("language", sentence, *prefix)
    scores = 2 * torch.randn(PIECES, generator=rng, dtype=torch.float64)
    scores[END] -= 2.0  # so that the best are long and hypotheses trade places
    weights = torch.rand(SOURCE, generator=rng, dtype=torch.float64).pow(6) * present  # sharp
    return scores.log_softmax(-1), weights / weights.sum()


def make_step(beam, present=PRESENT):
    """The same as a step of rows; the state is the sentence's number and the prefix, written out."""
    states = torch.full((len(present) * beam, LONGEST + 3), -1.0, dtype=torch.float64)
    states[:, 0] = torch.arange(len(present)).repeat_interleave(beam)

    def step(symbols, given):
        (table,) = given[0]
        table = table.clone()
        for row, symbol in zip(table, symbols.tolist(), strict=True):
            row[1 + int((row[1:] >= 0).sum())] = symbol
        said = [
            language([int(s) for s in row[1:] if s >= 0], int(row[0]), present[int(row[0])]) for row in table
        ]
        scores, weights = (torch.stack(parts) for parts in zip(*said, strict=True))
        return scores, weights, ((table,),)

    return step, ((states,),)


def score(sequence, sentence, present, options):
    """Equation 14 by hand: log P / lp + cp of a sequence that ends with END."""
    total, coverage, prefix = 0.0, [0.0] * SOURCE, [BEGIN]
    for symbol in sequence:
        scores, weights = language(prefix, sentence, present)
        total += float(scores[symbol])
        coverage = [a + float(b) for a, b in zip(coverage, weights, strict=True)]
        prefix.append(symbol)
    penalty = ((5 + len(sequence)) / 6) ** options.length_penalty
    seen = [min(c, 1.0) for c, here in zip(coverage, present.tolist(), strict=True) if here]
    return total / penalty + options.coverage_penalty * sum(map(math.log, seen))


def best_of_all(sentence, present, options):
    """By enumeration of all sequences of at most LONGEST symbols, END among them."""
    pieces = range(END + 1, PIECES)
    everything = (
        [*front, END] for length in range(LONGEST) for front in itertools.product(pieces, repeat=length)
    )
    return max(everything, key=lambda sequence: score(sequence, sentence, present, options))[:-1]


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.2, 0.2), (1.5, 0.0), (0.0, 2.0), (1.0, 1.0)])
def test_a_beam_that_holds_everything_finds_the_best_of_all(alpha, beta):
    options = make_options(beam=40, alpha=alpha, beta=beta)
    step, states = make_step(options.beam)
    expected = [best_of_all(row, PRESENT[row], options) for row in SENTENCES]
    assert search(step, states, PRESENT, options) == expected


def test_penalties_matter_to_these_sentences():
    """Else the test above would not see them."""
    answers = [
        [best_of_all(row, PRESENT[row], make_options(alpha=alpha, beta=beta)) for row in SENTENCES]
        for alpha, beta in [(0.0, 0.0), (1.5, 0.0), (0.0, 2.0)]
    ]
    assert answers[0] != answers[1]
    assert answers[0] != answers[2]


def greedy(sentence, present, limit):
    prefix = [BEGIN]
    while prefix[-1] != END:
        scores = language(prefix, sentence, present)[0].clone()
        scores[:END] = -math.inf
        prefix.append(END if len(prefix) == limit else int(scores.argmax()))
    return prefix[1:-1]


@pytest.mark.parametrize("margin", [None, 3.0])
def test_one_hypothesis_is_greedy(margin):
    step, states = make_step(1)
    found = search(step, states, PRESENT, make_options(beam=1, margin=margin))
    assert found == [greedy(row, PRESENT[row], LONGEST) for row in SENTENCES]


def test_no_margin_leaves_only_the_best_next_piece():
    step, states = make_step(40)
    found = search(step, states, PRESENT, make_options(beam=40, margin=1e-9))
    assert found == [greedy(row, PRESENT[row], LONGEST) for row in SENTENCES]


def test_a_margin_is_the_best_of_all_within_it():
    """Pieces further than the margin below the best next one are never said."""
    options = make_options(beam=40, margin=1.0)
    step, states = make_step(options.beam)
    found = search(step, states, PRESENT, options)
    assert found != search(*make_step(40), PRESENT, make_options(beam=40))
    for row, sequence in enumerate(found):
        prefix = [BEGIN]
        for symbol in [*sequence, END][: LONGEST - 1]:
            scores = language(prefix, row, PRESENT[row])[0][END:]
            assert scores[symbol - END] >= scores.max() - 1.0
            prefix.append(symbol)


def test_the_longest_translation_is_in_proportion_to_the_source():
    """Where END is all but impossible, every translation ends at its own limit."""

    def step(symbols, states):
        scores = torch.zeros(len(symbols), PIECES).double()
        scores[:, END] = -1e6
        return scores, PRESENT.double().repeat_interleave(2, 0), states

    states = ((torch.zeros(2 * len(PRESENT), 1).double(),),)
    found = search(step, states, PRESENT, make_options(beam=2, ratio=0.5, extra=1))
    assert [len(answer) for answer in found] == [4, 3, 1, 0]


def test_penalties_by_their_formulas():
    found = length_penalty(torch.tensor([1.0, 7.0]), 0.2)
    torch.testing.assert_close(found, torch.tensor([1.0, 12**0.2 / 6**0.2]))
    coverage = torch.tensor([[0.5, 2.0, 0.0], [0.25, 0.5, 1.0]])
    present = torch.tensor([[True, True, False], [True, True, True]])
    found = coverage_penalty(coverage, present, 0.2)
    torch.testing.assert_close(found, 0.2 * torch.tensor([math.log(0.5), math.log(0.125)]))
