"""Several runs side by side: what differs, how they ended, their curves."""

from metalearn.compare.overview import runs

__all__ = ["runs"]
