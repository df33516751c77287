"""Options of the hypergradient estimators."""

from dataclasses import dataclass

from metalearn.config import number, required
from metalearn.registry import register


@register("hypergradient", "first_order", "metalearn.hypergradient.first_order:FirstOrder")
@dataclass
class FirstOrderOptions:
    """The inner run stands still: DARTS with xi = 0."""

    name: str = required()


@register("hypergradient", "finite_difference", "metalearn.hypergradient.finite_difference:FiniteDifference")
@dataclass
class FiniteDifferenceOptions:
    """One inner step, its mixed second derivative by central differences (DARTS eq. 7-8)."""

    name: str = required()
    radius: float = number(above=0)  # norm of the weights' perturbation: the 0.01 of eps = 0.01 / ||v||


@register("hypergradient", "unrolled", "metalearn.hypergradient.unroll:Unrolled")
@dataclass
class UnrolledOptions:
    """Exact reverse mode through all inner steps of a segment."""

    name: str = required()


@register("hypergradient", "truncated", "metalearn.hypergradient.unroll:Truncated")
@dataclass
class TruncatedOptions:
    """Exact reverse mode through the last `window` inner steps of a segment."""

    name: str = required()
    window: int = number(at_least=1)  # inner steps
