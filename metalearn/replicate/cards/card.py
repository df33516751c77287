"""The card of a replication: card.json beside the report of a plan, benchmarks/results/cards once collected.

format      1; a card of another format is refused
plan, tier, family, metric, goal: metric is the table's; a row may have its own in its place
seeds       those that the plan asks for
runs        how many ended in which state, e.g. {"finished": 21}
rows        one a contender: see Row
claims      one a comparison: see ClaimOfCard
provenance  data     [{task, digest, from, source, licence, comparable, why}]; why: null where comparable
            config   {digest, stages}: sha256 of the runs' resolved configurations without seeds and places
            commits  [{commit, dirty, runs}]; commit null: not a checkout
            versions, hardware   [{..., runs}]: what differs is listed with its count of runs
            started  {first, last}
            wall     {runs: {stage_seedN: seconds}, sum}
            energy   {runs: {stage_seedN: joules}, joules, source, reason}; joules null: reason says why
            command  what makes it again
No card names a folder of the machine that it was made on.
"""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalearn.registry import UserError
from metalearn.report.claims import Summary, summary
from metalearn.train.files import write_json

FORMAT = 1
NAME = "card.json"
# overrides that leave the experiment as it is
FREE = ("tier", "machine", "log", "train.keep", "train.checkpoint_every")


@dataclass(frozen=True)
class Row:
    """One contender over its finished runs."""

    contender: str
    stage: str
    task: str
    metric: str
    unit: str
    values: dict[int, float]  # by seed
    others: dict[str, dict[int, float]]  # metric -> by seed: what the paper prints beside
    parameters: list[int]
    seconds: dict[int, float]  # by seed, of its own runs
    paired: bool  # whether equal seeds of two such rows make pairs
    comparable: bool  # whether the data are the published ones

    @property
    def summary(self) -> Summary | None:
        return summary(list(self.values.values())) if self.values else None


@dataclass(frozen=True)
class ClaimOfCard:
    """One contender held against others, as the report has it."""

    note: str
    contenders: list[str]
    verdict: str  # better, worse, unclear, none
    statement: str
    difference: float | None  # positive where the first is better
    half_width: float | None  # of the t-interval of the difference
    confidence: float
    seeds: list[int]
    test: str  # paired or Welch


@dataclass(frozen=True)
class Card:
    """What one plan came to at one tier."""

    plan: str
    tier: str
    family: str
    metric: str
    goal: str
    seeds: list[int]
    runs: dict[str, int]
    rows: list[Row]
    claims: list[ClaimOfCard]
    provenance: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether all runs did."""
        return set(self.runs) == {"finished"}

    @property
    def changed(self) -> list[str]:
        """Overrides by which its runs are not the plan's own."""
        words = shlex.split(self.provenance["command"])[3:]
        lines = [word for word in words if "=" in word or word.startswith("~")]
        keys = [(line, line.partition("=")[0].lstrip("+~")) for line in lines]
        return [
            line for line, key in keys if not any(key == one or key.startswith(f"{one}.") for one in FREE)
        ]

    @property
    def lost(self) -> dict[str, int]:
        """How many runs ended without a value, by state."""
        return {state: count for state, count in self.runs.items() if state in ("diverged", "failed")}

    @property
    def file(self) -> str:
        """Its name among the collected ones."""
        return f"{self.plan.replace('/', '_')}__{self.tier or 'plain'}.json"

    @property
    def seconds(self) -> float:
        """Of all runs, those of stages before the rows' too."""
        return self.provenance["wall"]["sum"]

    @property
    def joules(self) -> float | None:
        return self.provenance["energy"]["joules"]

    def row(self, contender: str) -> Row | None:
        """A contender's row, if the plan has it."""
        return next((row for row in self.rows if row.contender == contender), None)

    def values(self, contender: str | None, metric: str) -> dict[int, float]:
        """A contender's values of a metric by seed; none where the card has not got them."""
        row = self.row(contender or "")
        if row is None:
            return {}
        return row.values if metric in (self.metric, row.metric) else row.others.get(metric, {})


def write(card: Card, path: Path) -> None:
    """Put the card in the place of `path`. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, **dataclasses.asdict(card)})


def read(path: Path) -> Card:
    """The card in a file, of whatever commit. Raises UserError if it is broken or of another format."""
    try:
        values = json.loads(path.read_text("utf-8"))
        stated = values.pop("format", None)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no card that can be read: {error}; make it again") from None
    if stated != FORMAT:
        raise UserError(
            f"{path}: is a card of format {stated}, this metalearn reads format {FORMAT}; make it again: "
            "metalearn replicate NAME"
        )
    try:
        return _card(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: is a damaged card ({reason}); make it again") from None


def _card(values: Mapping[str, Any]) -> Card:
    """Keys that a later version has added are left out. Raises KeyError, TypeError for what is missing."""
    rows = [_known(Row, row) for row in values["rows"]]
    for row in rows:
        row["values"], row["seconds"] = _by_seed(row["values"]), _by_seed(row["seconds"])
        row["others"] = {metric: _by_seed(found) for metric, found in row["others"].items()}
    claims = [ClaimOfCard(**_known(ClaimOfCard, claim)) for claim in values["claims"]]
    card = Card(**{**_known(Card, values), "rows": [Row(**row) for row in rows], "claims": claims})
    for part in ("data", "config", "commits", "hardware", "wall", "energy", "command"):
        card.provenance[part]
    assert_number = (card.seconds, card.joules or 0.0)
    if not all(isinstance(number, int | float) for number in assert_number):
        raise TypeError("wall time and energy must be numbers")
    return card


def _known(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {one.name: values[one.name] for one in dataclasses.fields(schema)}


def _by_seed(values: Mapping[str, float]) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in values.items()}
