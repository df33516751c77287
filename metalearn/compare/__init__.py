"""Several runs side by side: what differs, how they ended, their curves."""

from metalearn.compare.build import build
from metalearn.compare.command import compare
from metalearn.compare.sources import Sources, gather

__all__ = ["Sources", "build", "compare", "gather"]
