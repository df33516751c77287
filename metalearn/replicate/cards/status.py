"""`metalearn replicate --status`: where replications stand. Reads only, beside runs that go on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from metalearn import records
from metalearn.registry import UserError
from metalearn.replicate.cards.library import Begun, Place, begun
from metalearn.report.numbers import duration

TAIL = 4096  # bytes of timing.jsonl that hold its last row


class Standing(NamedTuple):
    """Where one run stands; `left` are the seconds that it still takes, as far as can be told."""

    name: str
    state: str
    step: int = 0
    steps: int | None = None
    left: float | None = None
    message: str = ""

    def __str__(self) -> str:
        parts = [self.name, self.state]
        if self.step or self.steps:
            of = f" of {self.steps:,}" if self.steps else ""
            parts.append(f"step {self.step:,}{of}")
        if self.left is not None:
            parts.append(f"about {duration(self.left)} left")
        return " · ".join(parts) + (f": {self.message}" if self.message else "")


def show(names: Sequence[str], runs: Path, as_json: bool) -> None:
    """Print how far every replication under `runs` is. Raises UserError for a folder without any."""
    found = [one for one in begun(runs) if not names or one.plan in names]
    if not found:
        what = f"no replication of {', '.join(names)}" if names else "no replication"
        raise UserError(f"--status: {what} was begun under {runs}; give its folder by --runs")
    told = [(one, [standing(place) for place in one.places if not place.selection]) for one in found]
    if as_json:
        print(json.dumps([_plain(one, standings) for one, standings in told], indent=2))
        return
    for one, standings in told:
        _print(one, standings)


def _plain(one: Begun, standings: Sequence[Standing]) -> dict[str, Any]:
    runs = [standing._asdict() for standing in standings]
    return {"plan": one.plan, "tier": one.tier, "seeds": one.seeds, "runs": runs}


def _print(one: Begun, standings: Sequence[Standing]) -> None:
    states = dict.fromkeys(standing.state for standing in standings)
    counts = ", ".join(f"{sum(s.state == state for s in standings)} {state}" for state in states)
    tier = f", tier={one.tier}" if one.tier else ""
    print(f"{one.plan}{tier}: {len(standings)} runs, {counts}")
    for standing in standings:
        if standing.state not in ("finished", "not started"):
            print(f"  {standing}")


def standing(place: Place) -> Standing:
    """Where a run stands, by its small files alone."""
    name, folder = place.folder.name, place.folder
    if not (folder / "run.yaml").exists():
        return Standing(name, "not started")
    try:
        state, step, message = records.standing(folder)
        options = yaml.load(
            (folder / "run.yaml").read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        train = options["train"]
        steps, minutes = int(train["steps"]), train.get("minutes")
    except (UserError, OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        return Standing(name, "unreadable", message=str(error).splitlines()[0])
    row = _last_row(folder / "timing.jsonl")
    step = max(step, int(row.get("step", 0))) if state == "running" else step
    left = _left(row, steps, minutes) if state == "running" else None
    return Standing(name, state, step, steps, left, message)


def _left(row: dict[str, Any], steps: int, minutes: float | None) -> float | None:
    """Seconds for the steps that are left at the mean rate so far, or until the budget of minutes ends."""
    if not row.get("step") or "seconds" not in row:
        return None
    left = (steps - row["step"]) * row["seconds"] / row["step"]
    return max(0.0, left if minutes is None else min(left, 60 * minutes - row["seconds"]))


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a growing file, {} for none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return {}
    for line in reversed([line for line in lines if line.endswith(b"\n")]):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}
