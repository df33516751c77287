"""What our figures say of a published row: its value, and the order that the paper puts it in.

Value. Only at the paper's scale and on its data, with 3 seeds or more: the 95 % t-interval of our mean
(Student 1908) is held against the published value widened by its printed ±, or by the tolerance of reading
it off a figure.
Ordering. At any tier but smoke: the row is held against each contender in `over`, seed by seed, or by
Welch's interval where runs are no pairs. It is reproduced if it is better than every one of them at 95 %:
all must hold, which is an intersection-union test and needs no correction (Berger 1982). It is missed if it
is worse than any: of m comparisons one must exclude zero at 1 - 0.05 / m, the first step of Holm's
procedure (Holm 1979).
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from metalearn.replicate.cards.card import Card
from metalearn.replicate.cards.catalogue import Entry
from metalearn.report.claims import CONFIDENCE, LEAST_SEEDS, Claim, claim, half_width, welch
from metalearn.report.numbers import measured, plain

SCALES = (
    "paper",
    "",
    "gpu_hour",
    "cpu",
)  # the largest first; "": a plan of one budget, the paper's; no smoke
OF_PAPER = ("paper", "")
RULE = (
    "**Value**: said only at the paper's scale and on its data, of 3 seeds or more: *reproduced* where "
    "the 95 % t-interval of our mean meets the published value ± its printed spread (± the tolerance of "
    "reading where the paper has a figure and no table). **Ordering**: at any tier, the row against "
    "each contender that the paper puts it ahead of, on the same seeds (paired 95 % t-interval; Welch's "
    "where runs are no pairs): *ordering reproduced* where it is clearly better than every one of them "
    "(all must hold, so no correction for their number is needed), *ordering missed* where it is "
    "clearly worse than any (at 1 - 0.05 / m for m comparisons, Holm's first step), *not shown* "
    "otherwise; in brackets a smaller scale, other data or options that are not the plan's. "
    "Rows are judged one by one, with no correction over a table."
)


class Verdict(NamedTuple):
    """A word, and the sentence that says of which test, seeds and interval it comes."""

    word: str
    statement: str


class Judgement(NamedTuple):
    """Both verdicts on a row; `ordering` is None where the paper's order is not held against."""

    value: Verdict
    ordering: Verdict | None

    @property
    def word(self) -> str:
        """The verdict in a table: the order's where the value cannot be said, else both."""
        if self.ordering is None:
            return self.value.word
        if self.value.word.startswith(("not comparable", "no number")):
            return self.ordering.word
        return f"{self.value.word}; {self.ordering.word}"


def judge(entry: Entry, cards: Mapping[str, Card]) -> Judgement:
    """The verdicts on a row by the cards of its plan, by tier."""
    if entry.row.plan is None:
        return Judgement(Verdict("cited", f"cited: {entry.row.cited}"), None)
    place = entry.row.contender, entry.table.metric
    found = {tier: cards[tier] for tier in SCALES if tier in cards and cards[tier].values(*place)}
    if not found:
        return Judgement(Verdict("not run", f"not run: no finished run of {entry.row.plan}"), None)
    return Judgement(_value(entry, found), _ordering(entry, found))


def _value(entry: Entry, found: Mapping[str, Card]) -> Verdict:
    if entry.row.value is None:
        return Verdict("no number published", "no number published: only the order can be held against")
    tier, card = next(iter(found.items()))
    row = card.row(entry.row.contender or "")
    why = [] if tier in OF_PAPER else [f"tier={tier} is not the paper's scale"]
    why += [f"with {' '.join(card.changed)}"] if card.changed else []
    full = list(why)
    if row and not row.comparable:
        why.append("other data")
        full += [f"data: {data['why']}" for data in card.provenance["data"] if not data["comparable"]]
    if why:
        return Verdict(f"not comparable: {', '.join(why)}", f"not comparable: {'; '.join(full)}")
    said = _against(entry, list(card.values(entry.row.contender, entry.table.metric).values()))
    return Verdict(said.word, said.statement + _lost(card))


def _lost(card: Card) -> str:
    """Runs that a mean is without: what diverges is no accident."""
    told = [f"{count} {state}" for state, count in card.lost.items()]
    return f"; of the plan's runs {' and '.join(told)}, which count in no mean" if told else ""


def _against(entry: Entry, values: Sequence[float]) -> Verdict:
    """The t-interval of our mean against the published value and what it may be off by."""
    count, unit = len(values), entry.table.unit
    if count < LEAST_SEEDS:
        words = f"not shown: {count} seed{'s' * (count != 1)}, {LEAST_SEEDS} are needed"
        return Verdict(words, words)
    target = entry.row.value or 0.0
    mean, half = statistics.fmean(values), half_width(values)
    distance = mean - target
    ours = f"{measured(mean, half)} {unit}".rstrip()
    basis = f"our mean with its 95 % t-interval, {ours} ({count} seeds)"
    theirs = f"{entry.printed} {unit}".rstrip()
    if abs(distance) <= half + entry.spread:
        within = f"the two differ by at most {plain(abs(distance) + half)}"
        return Verdict("reproduced", f"reproduced: {basis}, meets {theirs}; with 95 % confidence {within}")
    better = (distance < 0) == (entry.table.goal == "min")
    word = "better than published" if better else "missed"
    far = plain(abs(distance))
    return Verdict(f"{word} by {far}", f"{word}: {basis}, is {far} {unit} from {theirs}".replace("  ", " "))


def _ordering(entry: Entry, found: Mapping[str, Card]) -> Verdict | None:
    """The order at the largest scale whose seeds allow a claim."""
    if not entry.row.over:
        return None
    verdicts = [_order_at(entry, tier, card) for tier, card in found.items()]
    shown = [verdict for verdict, claims in verdicts if any(one.verdict != "none" for one in claims)]
    return shown[0] if shown else verdicts[0][0]


def _order_at(entry: Entry, tier: str, card: Card) -> tuple[Verdict, list[Claim]]:
    pairs = [_pair(entry, card, name) for name in entry.row.over]
    at = _conditions(tier, card, all(pair.comparable for pair in pairs))
    claims = [claim(pair.contenders, entry.table.goal, entry.table.unit, "", pair.paired) for pair in pairs]
    said = "; ".join(one.statement for one in claims) + _lost(card)
    count = f"{len(claims)} comparison{'s' * (len(claims) != 1)}"
    states = {one.verdict for one in claims}
    confidence = 1 - (1 - CONFIDENCE) / len(claims)
    missed = any(
        one.verdict == "worse" and abs(one.difference or 0.0) > pair.half_width(confidence)
        for pair, one in zip(pairs, claims, strict=True)
    )
    if states == {"better"}:
        return Verdict(f"ordering reproduced{at}", f"ordering reproduced{at}, {count}: {said}"), claims
    if missed:
        return Verdict(f"ordering missed{at}", f"ordering missed{at}, {count} (Holm): {said}"), claims
    if states == {"none"}:
        words = f"not shown: too few finished seeds{at}"
        return Verdict(words, f"{words}: {said}"), claims
    ahead = sum(one.verdict == "better" for one in claims)
    over = f", clear over {ahead} of {len(claims)}" if ahead else ""
    lacking = "a contender lacks runs" if "none" in states else "no clear difference"
    return Verdict(f"not shown: {lacking}{over}{at}", f"not shown{at}, {count}: {said}"), claims


def _conditions(tier: str, card: Card, comparable: bool) -> str:
    """In which an order differs from the paper's: a smaller scale, other data, options of one's own."""
    small = [tier] if tier not in OF_PAPER else []
    parts = [*small, *([] if comparable else ["other data"]), *card.changed]
    return f" ({', '.join(parts)})" if parts else ""


class _Pair(NamedTuple):
    """A row and one that it is to be ahead of: values by seed."""

    contenders: dict[str, dict[int, float]]
    paired: bool
    comparable: bool

    def half_width(self, confidence: float) -> float:
        """Of the interval of the difference of their means."""
        ours, theirs = self.contenders.values()
        if self.paired:
            return half_width([theirs[seed] - ours[seed] for seed in ours if seed in theirs], confidence)
        return welch(list(ours.values()), list(theirs.values()), confidence)


def _pair(entry: Entry, card: Card, other: str) -> _Pair:
    names = [entry.row.contender or "", other]
    rows = [row for row in map(card.row, names) if row]
    values = {name: card.values(name, entry.table.metric) for name in names}
    return _Pair(values, all(row.paired for row in rows), all(row.comparable for row in rows))
