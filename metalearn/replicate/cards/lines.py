"""Published rows beside our figures: what the list and the documents show."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from metalearn.replicate.cards.card import Card
from metalearn.replicate.cards.catalogue import Entry
from metalearn.replicate.cards.library import Cards
from metalearn.replicate.cards.verdict import SCALES, Judgement, judge
from metalearn.report.claims import summary
from metalearn.report.numbers import duration, plain

TIERS = ("cpu", "gpu_hour", "paper")  # the columns of a table; a plan of one budget stands under paper


class Line(NamedTuple):
    """One published row: our card at each tier that has figures of it, and the verdict."""

    entry: Entry
    cards: dict[str, Card]
    judgement: Judgement

    @property
    def best(self) -> Card | None:
        """The card of the largest scale."""
        return next((self.cards[tier] for tier in SCALES if tier in self.cards), None)

    def values(self, tier: str) -> dict[int, float]:
        """Our values at a tier by seed."""
        entry = self.entry
        card = self.cards.get(tier)
        return card.values(entry.row.contender, entry.table.metric) if card else {}

    def figure(self, tier: str) -> str:
        """Our mean and deviation at a tier; - where there is none."""
        tiers = (tier, "") if tier == "paper" else (tier,)
        found = [values for values in map(self.values, tiers) if values]
        return str(summary(list(found[0].values()))) if found else "-"

    @property
    def seeds(self) -> str:
        """How many seeds stand behind the figure of the largest scale."""
        counts = [len(self.values(tier)) for tier in SCALES if tier in self.cards]
        return str(counts[0]) if counts else "-"

    @property
    def cost(self) -> str:
        """Wall time, and energy where it is known, of all runs of the plan behind that figure."""
        return "-" if self.best is None else cost(self.best)

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        entry, best = self.entry, self.best
        return {
            "paper": entry.paper.paper,
            "table": entry.place,
            "row": entry.name,
            "metric": entry.table.metric,
            "unit": entry.table.unit,
            "goal": entry.table.goal,
            "scale": entry.table.scale,
            "published": entry.row.value,
            "spread": entry.row.spread,
            "cited": entry.row.cited,
            "plan": entry.row.plan,
            "contender": entry.row.contender,
            "ours": {tier or "paper": self.values(tier) for tier in self.cards},
            "verdict": self.judgement.word,
            "value": self.judgement.value.statement,
            "ordering": self.judgement.ordering.statement if self.judgement.ordering else None,
            "seconds": best.seconds if best else None,
            "joules": best.joules if best else None,
        }


def cost(card: Card) -> str:
    """Wall time of all runs of a card, and their energy where the device told it."""
    joules = card.joules
    return duration(card.seconds) + ("" if joules is None else f", {energy(joules)}")


def energy(joules: float) -> str:
    """Joules below a Wh, then Wh, then kWh."""
    if joules < 3600:
        return f"{plain(joules)} J"
    return f"{plain(joules / 3600)} Wh" if joules < 3.6e6 else f"{plain(joules / 3.6e6)} kWh"


def lines(entries: Iterable[Entry], cards: Cards) -> list[Line]:
    """A line for every row of the catalogue."""
    return [_line(entry, cards) for entry in entries]


def _line(entry: Entry, cards: Cards) -> Line:
    of_plan = cards.get(entry.row.plan or "", {})
    judgement = judge(entry, of_plan)
    found = {
        tier: card
        for tier, card in of_plan.items()
        if tier in SCALES and card.values(entry.row.contender, entry.table.metric)
    }
    return Line(entry, found, judgement)
