"""Where the runs of a comparison come from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metalearn.compare import local, offline, online
from metalearn.compare.model import Entry
from metalearn.registry import UserError


@dataclass(frozen=True)
class Sources:
    """What a command line names."""

    places: Sequence[Path] = ()  # run directories, folders that hold some, offline W&B folders and files
    group: str | None = None  # of runs below `runs`
    runs: Path = Path("runs")
    wandb: str | None = None  # entity/project or entity/project/group


def gather(sources: Sources) -> tuple[list[Entry], list[str]]:
    """All runs that can be read, each once, and a sentence for each that cannot. Raises UserError."""
    if not (sources.places or sources.group or sources.wandb):
        raise UserError(
            "compare: name run directories or folders of them, or --group GROUP, or --wandb entity/project; "
            f"{local.LIST}"
        )
    directories, logs = _places(sources.places)
    if sources.group:
        directories += local.in_group(sources.runs, sources.group)
    entries, notices = local.read(_once(directories)) if directories else ([], [])
    for read, wanted in ((offline.read, _once(logs)), (online.read, sources.wandb)):
        if wanted:
            more, said = read(wanted)  # type: ignore[arg-type]
            entries, notices = entries + more, notices + said
    if not entries:
        raise UserError(f"compare: {notices[0].removeprefix('left out: ')}")
    return entries, notices


def _places(places: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Run directories and W&B's logs. Raises UserError for a place that has neither."""
    directories, logs = [], []
    for place in places:
        if not place.exists():
            raise UserError(
                f"{place}: no such folder; give a run directory or a folder of them, {local.LIST}"
            )
        runs = list(local.below(place))
        found = [] if place in runs else list(offline.below(place))
        if not runs and not found:
            raise UserError(
                f"{place}: holds no run directory, none has a run.yaml, and no offline W&B run; {local.LIST}"
            )
        directories, logs = directories + runs, logs + found
    return directories, logs


def _once(paths: Iterable[Path]) -> list[Path]:
    return list({path.resolve(): path for path in paths}.values())
