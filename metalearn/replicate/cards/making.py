"""A card made of run directories, which are read and never written."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metalearn.records import PLACES, Run, learned, targets
from metalearn.replicate.cards.card import Card, ClaimOfCard, Row
from metalearn.replicate.jobs import folder
from metalearn.replicate.plan import Plan
from metalearn.report.claims import CONFIDENCE, Claim
from metalearn.report.plan import Entry, Folders, Table, evaluate, stage_of
from metalearn.report.plan import Row as TableRow

NOT_RECORDED = "not recorded: runs of before energy was counted"
SHARED = "counters are of whole devices: what ran beside a run is in it"


def folders(plan: Plan, runs: Path) -> Folders:
    """stage -> seed -> folder of a plan under `runs`."""
    return {
        stage: {seed or 0: folder(plan, stage, seed, runs) for seed in plan.seeds_of(stage)}
        for stage in plan.stages
    }


def of_runs(
    plan: Plan, runs: Path, overrides: Sequence[str] = (), wanted: Mapping[str, Sequence[str]] | None = None
) -> Card:
    """The card of what is there of a plan. `wanted`: further metrics of its contenders. Raises UserError."""
    return of_table(plan, evaluate(plan, folders(plan, runs)), overrides, wanted or {})


def of_table(plan: Plan, table: Table, overrides: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> Card:
    """The card of an evaluated plan; numbers are of finished runs, and of what their run.yaml says."""
    states: dict[str, int] = {}
    for entry in table.entries:
        states[entry.state] = states.get(entry.state, 0) + 1
    notes = plan.table.claims or {"": list(plan.table.rows)}
    return Card(
        plan=plan.name,
        tier=plan.tier,
        family=plan.family,
        metric=plan.table.metric,
        goal=plan.table.goal,
        seeds=list(plan.seeds),
        runs=states,
        rows=[_row(plan, table, row, wanted.get(row.contender, ())) for row in table.rows],
        claims=[
            _claim(plan, note, contenders, claim)
            for (note, contenders), claim in zip(notes.items(), table.claims, strict=False)
        ],
        provenance=_provenance(plan, table, overrides),
    )


def _row(plan: Plan, table: Table, row: TableRow, wanted: Sequence[str]) -> Row:
    stage = stage_of(plan.table.rows[row.contender])
    runs = table.finished(stage)
    metrics = [*wanted, *(paper["metric"] for run in runs for paper in targets(run))]
    if row.metric != plan.table.metric:
        metrics = []  # one of many results of its runs, whose other metrics are of the first
    others = {
        metric: {run.seed: _chosen(run, metric) for run in runs if metric in run.metrics}
        for metric in dict.fromkeys(metrics)
        if metric != row.metric
    }
    return Row(
        contender=row.contender,
        stage=stage,
        task=row.task,
        metric=row.metric,
        unit=row.unit,
        values=dict(row.values),
        others={metric: values for metric, values in others.items() if values},
        parameters=list(row.parameters),
        seconds={run.seed: run.seconds for run in runs if run.seconds is not None},
        paired=plan.paired(stage),
        comparable=all(run.comparable for run in runs),
    )


def _chosen(run: Run, metric: str) -> float:
    """A metric's value at the step whose weights were tested, or its last."""
    curve = run.curve(metric)
    step = run.last("selected/step") if "selected/step" in run.metrics else None
    return next((point.value for point in curve if point.step == step), curve[-1].value)


def _claim(plan: Plan, note: str, contenders: Sequence[str], claim: Claim) -> ClaimOfCard:
    paired = all(plan.paired(stage_of(plan.table.rows[name])) for name in contenders)
    return ClaimOfCard(
        note=note,
        contenders=list(contenders),
        verdict=claim.verdict,
        statement=claim.statement,
        difference=claim.difference,
        half_width=claim.half_width,
        confidence=CONFIDENCE,
        seeds=list(claim.seeds),
        test="paired" if paired else "Welch",
    )


def _provenance(plan: Plan, table: Table, overrides: Sequence[str]) -> dict[str, Any]:
    done = [entry for entry in table.entries if entry.run and entry.state == "finished"]
    runs = [entry.run for entry in done if entry.run]
    started = sorted(str(run.provenance["started"]) for run in runs if "started" in run.provenance)
    wall = {_name(e): e.run.seconds for e in done if e.run and e.run.seconds is not None}
    return {
        "data": _data(runs),
        "config": _config(plan, done),
        "commits": _counted(runs, lambda run: run.provenance.get("git") or {"commit": None, "dirty": None}),
        "versions": _counted(runs, lambda run: run.provenance.get("versions", {})),
        "hardware": _counted(runs, lambda run: run.provenance.get("hardware", {})),
        "started": {"first": started[0], "last": started[-1]} if started else None,
        "wall": {"runs": wall, "sum": round(sum(wall.values()), 3)},
        "energy": _energy(done),
        "command": command(plan, overrides),
    }


def _name(entry: Entry) -> str:
    return f"{entry.stage}_seed{entry.seed}"


def _data(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        task = run.provenance.get("task", {})
        name, digest = task.get("name", run.task), task.get("digest", "")
        found[name, digest] = {
            "task": name,
            "digest": digest or None,
            "from": task.get("provenance"),
            "source": task.get("source"),
            "licence": task.get("licence"),
            "comparable": run.comparable,
            "why": None if run.comparable else task.get("provenance"),
        }
    return list(found.values())


def _config(plan: Plan, done: Sequence[Entry]) -> dict[str, Any]:
    texts: dict[str, set[str]] = {}
    for entry in done:
        if entry.run:
            texts.setdefault(entry.stage, set()).add(_configuration(entry.run, plan.place))
    stages = {stage: _digest("\n".join(sorted(found))) for stage, found in texts.items()}
    return {"digest": _digest(json.dumps(stages, sort_keys=True)), "stages": stages}


def _configuration(run: Run, place: str) -> str:
    """What is learned and how, without seed and places: equal text means the same experiment."""
    values = {key: _without_place(value, place) for key, value in learned(run).items()}
    return json.dumps(values, sort_keys=True, default=str)


def _without_place(value: Any, place: str) -> Any:
    """A path into a run of the same plan as its stage and file; any other absolute path as its last part."""
    if isinstance(value, list):
        return [_without_place(part, place) for part in value]
    if not isinstance(value, str):
        return value
    _, inside, rest = f"/{value}".partition(f"/{place}/")
    if inside:
        return "{" + re.sub(r"_seed\d+(?=/|$)", "", rest, count=1) + "}"
    return Path(value).name if Path(value).is_absolute() else value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _counted(runs: Sequence[Run], tell: Callable[[Run], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the runs say, each answer once with the number of runs that gave it."""
    counts: dict[str, int] = {}
    for run in runs:
        text = json.dumps(tell(run))
        counts[text] = counts.get(text, 0) + 1
    return [{**json.loads(text), "runs": count} for text, count in counts.items()]


def _energy(done: Sequence[Entry]) -> dict[str, Any]:
    """The energy of all runs; none unless every run told its own."""
    notes = [entry.run.provenance.get("energy", {}) for entry in done if entry.run]
    known = {_name(e): e.run.joules for e in done if e.run and e.run.joules is not None}
    if done and len(known) == len(done):
        sources = dict.fromkeys(str(note.get("source")) for note in notes)
        return {
            "runs": known,
            "joules": round(sum(known.values()), 2),
            "source": f"{', '.join(sources)}; {SHARED}",
            "reason": None,
        }
    reasons = dict.fromkeys(str(note.get("reason") or NOT_RECORDED) for note in notes)
    told = f"; {len(known)} of {len(done)} runs told theirs" if known else ""
    return {"runs": known, "joules": None, "source": None, "reason": ", ".join(reasons) + told}


def command(plan: Plan, overrides: Sequence[str]) -> str:
    """What makes the card again."""
    tier = [f"tier={plan.tier}"] if plan.tier else []
    seeds = ["--seeds", ",".join(map(str, plan.seeds))]
    return shlex.join(["metalearn", "replicate", plan.name, *seeds, *tier, *plain(overrides)])


def plain(overrides: Sequence[str]) -> list[str]:
    """Overrides without places, which are the user's own, and without absolute paths."""
    parts = [line.partition("=") for line in overrides]
    return [
        f"{key}{equals}{Path(value).name if Path(value).is_absolute() else value}"
        for key, equals, value in parts
        if key.lstrip("+~").partition(".")[0] not in PLACES
    ]
