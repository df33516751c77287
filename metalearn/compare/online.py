"""Runs at W&B, read through its public API."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metalearn.compare.entry import Told, entry
from metalearn.compare.metrics import from_rows
from metalearn.compare.model import Entry
from metalearn.registry import UserError, closest
from metalearn.unattended import no_questions

SECONDS = 20  # that a request may take
REQUESTS = 8  # at a time
PAGE = 10_000  # rows a request
STATES = {"killed": "interrupted", "pending": "running", "preempted": "interrupted"}  # others are ours too
OFFLINE = "; local runs and offline W&B folders need no network: metalearn compare runs/..."


def read(address: str, make_api: Callable[[], Any] | None = None) -> tuple[list[Entry], list[str]]:
    """All runs of `entity/project` or of `entity/project/group`, and a sentence for each unreadable one.

    `make_api` gives a wandb.Api, else one with the user's key. Raises UserError: no key, no network, no such
    project, a group without runs.
    """
    entity, project, group = _parts(address)
    try:
        with no_questions():
            api = (make_api or _api)()
            runs = list(api.runs(f"{entity}/{project}", filters={"group": group} if group else {}))
            there = [] if runs else list(api.runs(f"{entity}/{project}"))
    except UserError:
        raise
    except Exception as error:  # wandb's own, those of its requests, and of its service
        raise UserError(f"--wandb {address}: {_reason(error)}{OFFLINE}") from None
    if not runs:
        raise UserError(_nothing(address, group, there))
    with ThreadPoolExecutor(REQUESTS) as threads:
        results = list(threads.map(_attempt, runs))
    entries = [result for result in results if isinstance(result, Entry)]
    return entries, [result for result in results if isinstance(result, str)]


def _parts(address: str) -> tuple[str, str, str]:
    parts = address.strip("/").split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise UserError(f"--wandb: got {address!r}, must be entity/project or entity/project/group")
    return parts[0], parts[1], parts[2] if len(parts) > 2 else ""


def _nothing(address: str, group: str, there: list[Any]) -> str:
    if not group:
        return f"--wandb {address}: the project has no runs"
    groups = sorted({str(run.group) for run in there if run.group})
    return (
        f"--wandb {address}: no run is in a group {group!r}; the groups there: "
        f"{', '.join(closest(group, groups)) or 'none'}"
    )


def _api() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"--wandb needs the package wandb ({error}): uv sync") from None
    return wandb.Api(timeout=SECONDS)


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0].rstrip(". ")
    if "api_key" in text.lower().replace(" ", "_"):
        return f"W&B wants a key ({text}): wandb login, or WANDB_API_KEY"
    return f"W&B cannot be read ({type(error).__name__}: {text})"


def _attempt(run: Any) -> Entry | str:
    try:
        return _entry(run)
    except Exception as error:
        return f"left out: {run.url}: {_reason(error)}"


def _entry(run: Any) -> Entry:
    rows: dict[int, dict[str, Any]] = {}
    for row in run.scan_history(page_size=PAGE):
        step = row["step"] if isinstance(row.get("step"), int) else row.get("_step", 0)
        rows.setdefault(int(step), {}).update(row)
    ordered = [{**row, "step": step} for step, row in sorted(rows.items())]
    series = {name: one for name, one in from_rows(ordered, "step").items() if not name.startswith("_")}
    config = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    seconds = next((row["_runtime"] for row in reversed(ordered) if row.get("_runtime") is not None), None)
    state = str(STATES.get(run.state, run.state))
    last = ordered[-1]["step"] if ordered else 0
    return entry(Told(run.url, "W&B", config, series, state, last, "", {"seconds": seconds}))
