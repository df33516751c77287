"""`metalearn publish`: runs and their comparison to W&B.

Nothing is sent but by this command. Uploads go through W&B's own `wandb sync`, reports through its
wandb-workspaces; both are tested against a local fake of W&B's HTTP API, never against wandb.ai.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn.compare import wandb_report
from metalearn.compare.build import build
from metalearn.compare.local import LIST, below
from metalearn.compare.model import Comparison
from metalearn.compare.sources import Sources, gather
from metalearn.compare.terminal import say
from metalearn.compare.upload import Parcel, parcel, replay, send
from metalearn.compare.wandb_server import Server
from metalearn.registry import UserError

TESTED = (
    "dry run: nothing was sent, no server was asked. Uploading and reports are tested against a local fake "
    "of W&B's HTTP API, not against wandb.ai"
)
LINES = 20  # runs that are listed one by one


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    places: Sequence[Path]  # run directories and folders that hold some
    project: str | None = None  # else the one that the runs' configuration names
    entity: str | None = None  # user or team; else the runs', else the key's own
    title: str | None = None  # of a report to build
    dry: bool = False


def publish(request: Request) -> None:
    """Send what was not sent yet, then build the report. Running it again sends nothing twice.

    Raises UserError: no run, no key, no network, unknown entity or project, the extra `reports` is missing.
    """
    parcels = _parcels(request.places)
    project = request.project or _only(parcels, "project")
    entity = request.entity or _only(parcels, "entity")
    comparison = _comparison(request, parcels) if request.title else None
    _tell(parcels, f"{entity}/{project}" if entity else project)
    if request.dry:
        if comparison is not None:
            say(f"a report: {wandb_report.outline(comparison, request.title or '')}")
        say(TESTED)
        return
    if comparison is None and all(one.kept for one in parcels):
        say("nothing to send")
        return
    server = Server()
    entity = server.entity(entity)
    server.check_project(entity, project, named=request.project is not None)
    _upload(parcels, entity, project)
    say(f"runs: {server.address(entity, project)}")
    if comparison is not None:
        address = wandb_report.save(comparison, entity, project, request.title or comparison.title)
        say(f"report: {address}")


def _parcels(places: Sequence[Path]) -> list[Parcel]:
    found: dict[Path, Path] = {}
    for place in places:
        runs = list(below(place))
        if not runs:
            raise UserError(f"publish: {place} is no run directory and holds none; {LIST}")
        found |= {run.resolve(): run for run in runs}
    return [parcel(run) for run in found.values()]


def _only(parcels: Sequence[Parcel], what: str) -> str:
    names = sorted({getattr(one, what) for one in parcels})
    if len(names) > 1:
        told = ", ".join(name or "none" for name in names)
        raise UserError(f"publish: these runs name several: {told}; --{what} chooses one for all")
    return names[0]


def _comparison(request: Request, parcels: Sequence[Parcel]) -> Comparison:
    wandb_report.check()  # a missing extra is told before anything is sent
    entries, notices = gather(Sources([one.run.path for one in parcels]))
    return build(entries, notices=notices, title=request.title or "")


def _tell(parcels: Sequence[Parcel], where: str) -> None:
    going = [one for one in parcels if not one.kept]
    say(f"to {where}: {len(going)} of {len(parcels)} runs")
    for one in going[:LINES]:
        say(f"  {one.run.path}: {one.how}")
    if len(going) > LINES:
        say(f"  and {len(going) - LINES} more")
    for reason, count in Counter(one.kept for one in parcels if one.kept).items():
        say(f"  left out: {count} that {reason}" if count > 1 else f"  left out: one that {reason}")


def _upload(parcels: Sequence[Parcel], entity: str, project: str) -> None:
    logs = [log for one in parcels if not one.kept for log in one.logs or replay(one.run)]
    if logs:
        send(logs, entity, project)
