"""argparse as the command line takes it: mistakes are one message."""

import argparse

from metalearn.registry import UserError


class Parser(argparse.ArgumentParser):
    """argparse with our one-message errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; {self.format_usage().strip()}")


def integers(text: str) -> list[int]:
    """Whole numbers with commas between them, e.g. 0,1,2."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, must be whole numbers with commas: 0,1,2") from None
