"""Where cards are: beside reports under a folder of runs, and collected in a checkout."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from metalearn.compose import CONF, options
from metalearn.registry import UserError
from metalearn.replicate.cards import card, catalogue, making
from metalearn.replicate.cards.card import NAME, Card
from metalearn.replicate.jobs import jobs
from metalearn.replicate.plan import Plan, load

ROOT = CONF.parent
COLLECTED = ROOT / "benchmarks" / "results" / "cards"
BEGUN = "replication.json"  # what a replication asks for, written before its first run

Cards = Mapping[str, Mapping[str, Card]]  # plan -> tier -> card


class Place(NamedTuple):
    """A run, or a selection, that a plan asks for."""

    stage: str
    seed: int | None
    folder: Path
    selection: bool


class Begun(NamedTuple):
    """A replication that was started in a folder of runs."""

    plan: str
    tier: str
    seeds: list[int]
    overrides: list[str]
    places: list[Place]


def home(plan: Plan, runs: Path) -> Path:
    """Where the card of a plan lies: the folder of its report."""
    return runs / "/".join(filter(None, (plan.name, plan.tier)))


def begin(plan: Plan, overrides: Sequence[str], runs: Path) -> None:
    """Write down what is about to be run, for those who ask for its status."""
    made = [(job.stage, job.seed, job.folder, job.choice is not None) for job in jobs(plan, [], runs)]
    values = {
        "plan": plan.name,
        "tier": plan.tier,
        "seeds": list(plan.seeds),
        "overrides": making.plain(overrides),
        "places": [(stage, seed, str(path.relative_to(runs)), kind) for stage, seed, path, kind in made],
    }
    home(plan, runs).mkdir(parents=True, exist_ok=True)
    card.write_json(home(plan, runs) / BEGUN, values)


def begun(runs: Path) -> list[Begun]:
    """The replications under `runs`: those that left replication.json, and older ones by their report.

    Raises UserError for a folder that is not there or a broken file.
    """
    if not runs.is_dir():
        raise UserError(f"--runs: there is no folder {runs}; give the one that replicate was given")
    found = [_read_begun(path, runs) for path in sorted(runs.glob(f"**/{BEGUN}"))]
    known = {(one.plan, one.tier) for one in found}
    for report in sorted(runs.glob("**/report.md")):
        place = report.parent.relative_to(runs).as_posix()
        for name, tier in ((place, ""), (place.rpartition("/")[0], place.rpartition("/")[2])):
            if name in options("recipe") and (plan := _plan(name, tier)) and (name, tier) not in known:
                found.append(of_plan(plan, [], runs))
    return sorted(found, key=lambda one: (one.plan, one.tier))


def of_plan(plan: Plan, overrides: Sequence[str], runs: Path) -> Begun:
    """A plan as if it had been begun in `runs`."""
    places = [Place(job.stage, job.seed, job.folder, job.choice is not None) for job in jobs(plan, [], runs)]
    return Begun(plan.name, plan.tier, list(plan.seeds), list(overrides), places)


def _plan(name: str, tier: str) -> Plan | None:
    """The plan of an older report; none for a recipe without this tier, of several plans or of one run."""
    try:
        found = load(name, None, tier or None)
    except UserError:
        return None
    return found[0] if len(found) == 1 and found[0].tier == tier else None


def _read_begun(path: Path, runs: Path) -> Begun:
    try:
        values = json.loads(path.read_text("utf-8"))
        places = [
            Place(stage, seed, runs / folder, selection)
            for stage, seed, folder, selection in values["places"]
        ]
        return Begun(values["plan"], values["tier"], values["seeds"], values["overrides"], places)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); the same metalearn replicate writes it again"
        ) from None


def write(plan: Plan, overrides: Sequence[str], runs: Path) -> Card:
    """Make the card of what a plan has come to, beside its report. Raises UserError, OSError."""
    made = _made(plan, overrides, runs)
    card.write(made, home(plan, runs) / NAME)
    return made


def _made(plan: Plan, overrides: Sequence[str], runs: Path) -> Card:
    return making.of_runs(plan, runs, overrides, catalogue.metrics(plan.name, catalogue.entries()))


def under(runs: Path) -> list[Card]:
    """The cards beside the reports under a folder. Raises UserError for one that cannot be read."""
    return [card.read(path) for path in sorted(runs.glob(f"**/{NAME}"))]


def collected(folder: Path = COLLECTED) -> list[Card]:
    """The cards of this checkout; none where there is none. Raises UserError."""
    return [card.read(path) for path in sorted(folder.glob("*.json"))]


def by_plan(*groups: Iterable[Card]) -> Cards:
    """The cards by plan and tier: of two the plan's own, then the one with more values, then the later."""
    found: dict[str, dict[str, Card]] = {}
    for one in (one for group in groups for one in group):
        tiers = found.setdefault(one.plan, {})
        before = tiers.get(one.tier)
        if before is None or _weight(one) >= _weight(before):
            tiers[one.tier] = one
    return found


def _weight(one: Card) -> tuple[bool, int]:
    return not one.changed, sum(len(row.values) for row in one.rows)


def collect(names: Sequence[str], tier: str | None, runs: Path, force: bool) -> Iterator[str]:
    """Copy cards into the checkout, and say what was done with each.

    Named plans are read anew from their run directories, whatever wrote them; with no name the cards that
    lie under `runs` are taken, and older replications are read. Raises UserError outside a checkout.
    """
    if not (ROOT / "pyproject.toml").exists() or not (ROOT / "benchmarks").is_dir():
        raise UserError(
            "--collect: this metalearn is no checkout, it has no benchmarks/results to collect in"
        )
    for made in _candidates(names, tier, runs):
        yield _take(made, COLLECTED / made.file, force)


def _candidates(names: Sequence[str], tier: str | None, runs: Path) -> Iterator[Card]:
    if names:
        for plan in (plan for name in names for plan in load(name, None, tier)):
            begun_by = home(plan, runs) / BEGUN
            yield _made(plan, _read_begun(begun_by, runs).overrides if begun_by.exists() else (), runs)
        return
    for one in begun(runs):
        if one.tier == tier or (tier is None and one.tier != "smoke"):  # which shows nothing but that it runs
            place = runs / "/".join(filter(None, (one.plan, one.tier))) / NAME
            (plan,) = load(one.plan, one.seeds, one.tier or None)
            yield card.read(place) if place.exists() else _made(plan, one.overrides, runs)


def _take(made: Card, target: Path, force: bool) -> str:
    if not made.finished and not force:
        count = sum(made.runs.values())
        done = made.runs.get("finished", 0)
        return f"left out {made.plan}: {done} of {count} runs finished; --force takes it as it is"
    if made.changed and not force:
        own = " ".join(made.changed)
        return f"left out {made.plan}: run with {own}, which is not the plan; --force takes it"
    if target.exists() and not force:
        fewer = _fewer(card.read(target), made)
        if fewer:
            return f"left out {made.plan}: {fewer}; --force replaces the card that is there"
    card.write(made, target)
    return f"collected {target.relative_to(ROOT) if target.is_relative_to(ROOT) else target.name}"


def _fewer(before: Card, now: Card) -> str:
    """Which contender has fewer seeds than before; empty for none."""
    for row in before.rows:
        other = now.row(row.contender)
        count = len(other.values) if other else 0
        if count < len(row.values):
            return f"{row.contender} has {count} seeds, the card there {len(row.values)}"
    return ""
