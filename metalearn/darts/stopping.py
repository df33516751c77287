"""Rules that end a search before its steps are used up."""

from collections.abc import Sequence
from typing import NamedTuple

from metalearn.darts.config import DartsOptions
from metalearn.darts.space import Choices
from metalearn.registry import UserError


class Rise(NamedTuple):
    """Means of the dominant eigenvalue over two windows, one right after the other."""

    older: float
    newer: float


def rise(eigenvalues: Sequence[float], window: int, ratio: float) -> Rise | None:
    """The last two windows, if the older mean is below `ratio` of the newer one, which is above 0.

    Zela et al. 2020, section 4.3: with l(i) the mean over the k = 5 eigenvalues up to epoch i, stop when
    l(i - k) / l(i) < 0.75 and return the architecture of epoch i - k: `window` measurements before the last.
    The authors' code differs (src/utils.py and src/search/args.py of automl/RobustDARTS): its windows of 5
    lie around an epoch and are 4 measurements apart, so that they overlap by one; it stops when the newer is
    over 1.3 times the older, and not where the older one's middle is before epoch 10.
    """
    if len(eigenvalues) < 2 * window:
        return None
    older, newer = (
        sum(part) / window for part in (eigenvalues[-2 * window : -window], eigenvalues[-window:])
    )
    return Rise(older, newer) if newer > 0 and older < ratio * newer else None


def check(options: DartsOptions, choices: dict[str, Choices]) -> None:
    """Raises UserError for rules that have nothing to look at."""
    monitor, rule, decay = options.monitor, options.stopping.kind, options.regularisation.weight_decay
    wanting = [f"method.stopping.kind={rule}"] if rule != "none" else []
    wanting += ["method.regularisation.weight_decay=adaptive"] if decay == "adaptive" else []
    if wanting and not monitor.every:
        raise UserError(
            f"{wanting[0]}: got method.monitor.every=0, so nothing is measured; set it to a number of steps"
        )
    by_eigenvalue = [which for which in wanting if not which.endswith("skips")]
    if by_eigenvalue and monitor.eigenvalue == "none":
        raise UserError(
            f"{by_eigenvalue[0]}: got method.monitor.eigenvalue=none; choose lanczos or power, or other rules"
        )
    if rule == "skips" and "normal" not in choices:
        raise UserError(
            "method.stopping.kind: got skips, but this space has no normal cell; choose eigenvalue or none"
        )
