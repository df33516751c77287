"""What README.md says of the papers: the rows that have a verdict, and what the cards claim clearly."""

import re
from collections.abc import Mapping, Sequence

from metalearn.replicate.cards.card import Card, ClaimOfCard
from metalearn.replicate.cards.lines import TIERS, Line
from metalearn.replicate.cards.listing import by_table
from metalearn.replicate.cards.markdown import table

MANY = 3  # clear claims of a card that are told one by one; of more it is told how many
BASIS = re.compile(r" \((paired|Welch), [^)]*\)$")


def short(found: Sequence[Line], cards: Sequence[Card]) -> str:
    """A table of the rows with a verdict, and a line a card of the papers' families."""
    rows = [row for first, members in by_table(found) for row in _rows(first, members)]
    if not rows:
        return "No row has figures yet."
    families = {line.entry.family for line in found}
    chosen = [card for card in cards if card.plan.partition("/")[0] in families and card.tier != "smoke"]
    header = ("table", "row", "published", "ours", "in the paper ahead of", "verdict")
    parts = [table(header, rows, {2, 3}), _findings(chosen)]
    return "\n\n".join(part for part in parts if part)


def _rows(first: Line, members: Sequence[Line]) -> list[tuple[str, ...]]:
    """A table's name stands at its first row only."""
    told = [line for line in members if line.best is not None and not _silent(line)]
    options = first.entry.table
    unit = f", {options.unit}" if options.unit else ""
    names = [f"`{first.entry.place}`: {options.title}{unit}", *[""] * len(told)]
    of = {row.contender: name for name, row in options.rows.items()}
    return [
        (name, line.entry.name, line.entry.printed, _ours(line), _behind(line, of), _word(line))
        for name, line in zip(names, told, strict=False)
    ]


def _behind(line: Line, names: Mapping[str | None, str]) -> str:
    """The rows that the paper puts it ahead of, by the paper's names where the table has them."""
    return "; ".join(names.get(contender, contender) for contender in line.entry.row.over)


def _silent(line: Line) -> bool:
    """Nothing can be said of the value, and no order is held against."""
    return line.judgement.ordering is None and line.judgement.word.startswith(("not", "no "))


def _ours(line: Line) -> str:
    told = [(line.figure(tier), tier, len(line.values(tier))) for tier in TIERS]
    return ", ".join(f"{figure} ({tier}, {count} seeds)" for figure, tier, count in told if figure != "-")


def _word(line: Line) -> str:
    """The verdict, without the tier where only one has figures."""
    word = line.judgement.word
    if len(line.cards) > 1:
        return word
    tier = next(iter(line.cards))
    return word.removesuffix(f" ({tier})").replace(f" ({tier}, ", " (")


def _findings(cards: Sequence[Card]) -> str:
    """Clear claims card by card; the cards without one in a line together."""
    clear = [f"- `{card.plan}`: {_claimed(card)}" for card in cards if _clear(card)]
    silent = [f"`{card.plan}`" for card in cards if card.claims and not _clear(card)]
    return "\n".join([*clear, *([f"- No difference is clear: {', '.join(silent)}."] if silent else [])])


def _clear(card: Card) -> list[ClaimOfCard]:
    return [claim for claim in card.claims if claim.verdict in ("better", "worse")]


def _claimed(card: Card) -> str:
    clear, count = _clear(card), len(card.claims)
    if len(clear) > MANY:
        won = sum(claim.verdict == "better" for claim in clear)
        return f"of {count} comparisons {won} won, {len(clear) - won} lost, {count - len(clear)} open"
    told = "; ".join(BASIS.sub("", claim.statement) for claim in clear)
    return told + (f"; {count - len(clear)} open" if count > len(clear) else "")
