"""Beam search with length normalisation and coverage penalty (Wu et al. 2016, section 7 and equation 14)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from metalearn.hypernetworks.recurrent import State
from metalearn.hypernetworks.translation.config import SearchOptions
from metalearn.task import BEGIN, END, PADDING

States = tuple[State, ...]
BASE = 5  # of the length penalty


class Step(Protocol):
    """One more piece of every hypothesis: log-probabilities of the next, attention's weights, states."""

    def __call__(
        self, symbols: Int64[Tensor, " row"], states: States
    ) -> tuple[Float[Tensor, "row pieces"], Float[Tensor, "row source"], States]: ...


@dataclass
class Alive:
    """Hypotheses that have not ended, `beam` a sentence; a score of -inf marks an empty place."""

    scores: Float[Tensor, "batch beam"]  # log P
    coverage: Float[Tensor, "batch beam source"]  # attention's weights, summed over the steps
    symbols: Int64[Tensor, "batch beam length"]  # from BEGIN on
    states: States  # [batch*beam units] each


@dataclass
class Best:
    """The best ended hypothesis of each sentence; a score of -inf where none has ended."""

    scores: Float[Tensor, " batch"]
    symbols: Int64[Tensor, "batch length"]  # with BEGIN, filled up with PADDING


def length_penalty(length: Float[Tensor, "..."], alpha: float) -> Float[Tensor, "..."]:
    """lp(Y) = (5 + |Y|)^alpha / (5 + 1)^alpha; the symbol that ends Y is counted."""
    return (BASE + length) ** alpha / (BASE + 1) ** alpha


def coverage_penalty(
    coverage: Float[Tensor, "... source"], present: Bool[Tensor, "... source"], beta: float
) -> Float[Tensor, "..."]:
    """cp(X; Y) = beta sum_i log min(sum_j p_ij, 1) over the source's places i; at most 0."""
    smallest = torch.finfo(coverage.dtype).tiny
    return beta * coverage.clamp(smallest, 1.0).log().masked_fill(~present, 0.0).sum(-1)


def search(
    step: Step, states: States, present: Bool[Tensor, "batch source"], options: SearchOptions
) -> list[list[int]]:
    """The best translation found of each sentence, without BEGIN and END.

    `states` has `options.beam` rows a sentence, side by side. A translation has at most
    longest_ratio |X| + longest_extra pieces, END among them. Hypotheses that cannot overtake the best ended
    one any more are dropped; the search ends when none is left, which the host must know after each step.
    """
    longest = (options.longest_ratio * present.sum(1)).long() + options.longest_extra
    alive = _start(states, present, options.beam)
    best = Best(alive.scores.new_full(longest.shape, -torch.inf), alive.symbols[:, 0])
    for length in range(1, int(longest.max()) + 1):
        log_probabilities, weights, states = step(alive.symbols[:, :, -1].flatten(), alive.states)
        scores = log_probabilities.unflatten(0, alive.scores.shape)
        coverage = alive.coverage + weights.unflatten(0, alive.scores.shape)
        scores = _allowed(scores, length >= longest, options.margin) + alive.scores.unsqueeze(-1)
        alive = _advance(Alive(scores, coverage, alive.symbols, states), options.beam)
        best = _end(alive, best, present, options)
        bound = alive.scores / length_penalty(longest.to(alive.scores), options.length_penalty).unsqueeze(-1)
        alive.scores = alive.scores.masked_fill(bound <= best.scores.unsqueeze(-1), -torch.inf)
        if not alive.scores.isfinite().any():
            break
    return [_answer(row) for row in best.symbols.tolist()]


def _start(states: States, present: Tensor, beam: int) -> Alive:
    """One empty hypothesis a sentence."""
    rows = len(present)
    scores = states[0][0].new_full((rows, beam), -torch.inf)
    scores[:, 0] = 0.0
    symbols = torch.full((rows, beam, 1), BEGIN, device=present.device)
    return Alive(scores, scores.new_zeros(rows, beam, present.shape[1]), symbols, states)


def _allowed(
    scores: Float[Tensor, "batch beam pieces"], last: Bool[Tensor, " batch"], margin: float | None
) -> Tensor:
    """-inf for what is no piece, for all but END at the `last` place, for what is `margin` below the best."""
    places = torch.arange(scores.shape[-1], device=scores.device)
    scores = scores.masked_fill((places == PADDING) | (places == BEGIN), -torch.inf)
    scores = scores.masked_fill(last[:, None, None] & (places != END), -torch.inf)
    if margin is None:
        return scores
    return scores.masked_fill(scores < scores.amax(-1, keepdim=True) - margin, -torch.inf)


def _advance(extended: Alive, beam: int) -> Alive:
    """The best `beam` of all extensions; `extended.scores` is [batch beam pieces]."""
    pieces = extended.scores.shape[-1]
    scores, places = extended.scores.flatten(1).topk(beam, dim=1)
    parents, symbols = places // pieces, places % pieces
    batch = torch.arange(len(parents), device=parents.device).unsqueeze(-1)
    rows = (batch * beam + parents).flatten()
    return Alive(
        scores,
        extended.coverage[batch, parents],
        torch.cat([extended.symbols[batch, parents], symbols.unsqueeze(-1)], dim=-1),
        tuple(tuple(part[rows] for part in state) for state in extended.states),
    )


def _end(alive: Alive, best: Best, present: Tensor, options: SearchOptions) -> Best:
    """Take those that have just ended out of `alive`, and the best of them if it is better than `best`."""
    length = alive.scores.new_tensor(alive.symbols.shape[-1] - 1)
    ended = alive.symbols[:, :, -1] == END
    scores = alive.scores / length_penalty(length, options.length_penalty)
    scores = scores + coverage_penalty(alive.coverage, present.unsqueeze(1), options.coverage_penalty)
    scores, places = scores.masked_fill(~ended, -torch.inf).max(1)
    alive.scores = alive.scores.masked_fill(ended, -torch.inf)
    better = scores > best.scores
    candidates = alive.symbols[torch.arange(len(places), device=places.device), places]
    known = torch.nn.functional.pad(best.symbols, (0, 1), value=PADDING)
    symbols = torch.where(better.unsqueeze(-1), candidates, known)
    return Best(torch.where(better, scores, best.scores), symbols)


def _answer(symbols: list[int]) -> list[int]:
    """What stands between BEGIN and END; nothing where no score was a number."""
    return symbols[1 : symbols.index(END)] if END in symbols else []
