"""`metalearn compare`."""

from collections.abc import Sequence
from pathlib import Path

from metalearn.compare import files, terminal
from metalearn.compare.build import build
from metalearn.compare.model import Comparison
from metalearn.compare.sources import Sources, gather


def compare(
    sources: Sources, metrics: Sequence[str] = (), baseline: str | None = None, output: Path | None = None
) -> Comparison:
    """Print the comparison; with `output` also write compare.csv, compare.md and compare.html there.

    Raises UserError: no run, none with a row, nothing in common, no such metric or baseline.
    """
    entries, notices = gather(sources)
    comparison = build(entries, metrics, baseline, notices)
    terminal.show(comparison)
    if output is not None:
        terminal.say(f"report: {files.write(comparison, output)}")
    return comparison
