"""Numbers as people read them."""

import math
from collections.abc import Sequence


def plain(value: float) -> str:
    """Four significant digits: 2.761, 12,345, 1.2e-05."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e8 else f"{value:.3e}"


def measured(mean: float, spread: float | None) -> str:
    """`mean ± spread`, to two significant digits of the spread; the mean alone without a spread."""
    if spread is None or not math.isfinite(spread):
        return plain(mean)
    if spread == 0:
        return f"{plain(mean)} ± 0"
    decimals = 1 - math.floor(math.log10(spread))
    if decimals > 5 or decimals < -4:
        return f"{mean:.2e} ± {spread:.1e}"
    return f"{mean:,.{max(0, decimals)}f} ± {spread:,.{max(0, decimals)}f}"


def span(values: Sequence[int]) -> str:
    """One count, or the least and the greatest where they differ."""
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
