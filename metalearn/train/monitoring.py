"""The metric that a run is watched by."""

from collections.abc import Iterable

from metalearn.config import TrainOptions
from metalearn.method import Method
from metalearn.registry import UserError


def check(train: TrainOptions, method: Method) -> None:
    """Refuse, before anything has trained, what the method is known not to measure. Raises UserError."""
    if train.select == "best" and (train.monitor is None or not train.evaluate_every):
        raise UserError(
            "train.select: got best, which needs train.monitor and train.evaluate_every above 0; set them, "
            "or take train.select=last"
        )
    if train.monitor is None or not train.evaluate_every or not method.measures:
        return
    split, _, quantity = train.monitor.partition("/")
    if split != "valid" or quantity.partition("/")[0] not in method.measures:
        raise missing(train.monitor, (f"valid/{name}" for name in method.measures))


def missing(monitor: str, given: Iterable[str]) -> UserError:
    """The mistake of a metric that the evaluation does not give."""
    return UserError(
        f"train.monitor: got {monitor}, which the evaluation does not give; choose one of: "
        f"{', '.join(given)}, or null"
    )
