"""A comparison as one interactive HTML file that opens without a network."""

from metalearn.compare.page.writer import write

__all__ = ["write"]
