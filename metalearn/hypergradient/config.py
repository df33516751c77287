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
    recompute: bool = required()  # keep about sqrt(steps) states and run each part again in the backward pass


@register("hypergradient", "truncated", "metalearn.hypergradient.unroll:Truncated")
@dataclass
class TruncatedOptions:
    """Exact reverse mode through the last `window` inner steps of a segment."""

    name: str = required()
    window: int = number(at_least=1)  # inner steps


@register("hypergradient", "forward", "metalearn.hypergradient.forward:Forward")
@dataclass
class ForwardOptions:
    """Exact forward mode: one tangent of the inner run for each meta-parameter."""

    name: str = required()
    chunk: int = number(at_least=1)  # tangents propagated side by side: memory against speed


@register("hypergradient", "neumann", "metalearn.hypergradient.neumann:Neumann")
@dataclass
class NeumannOptions:
    """Implicit differentiation at the end of a segment, the inverse Hessian by a Neumann series."""

    name: str = required()
    iterations: int = number(at_least=0)  # terms of the series after the first
    step: float = number(above=0)  # alpha of (I - alpha H)^i; must be below 2 / largest eigenvalue
    damping: float = number(at_least=0)  # added to the Hessian's diagonal


@register(
    "hypergradient", "conjugate_gradient", "metalearn.hypergradient.conjugate_gradient:ConjugateGradient"
)
@dataclass
class ConjugateGradientOptions:
    """Implicit differentiation at the end of a segment, the inverse Hessian by conjugate gradients."""

    name: str = required()
    iterations: int = number(at_least=1)
    damping: float = number(at_least=0)  # added to the Hessian's diagonal


@register("hypergradient", "evolution", "metalearn.hypergradient.evolution:Evolution")
@dataclass
class EvolutionOptions:
    """Antithetic evolution strategies over whole segments: no derivative of the inner run."""

    name: str = required()
    pairs: int = number(at_least=1)  # of opposite perturbations
    deviation: float = number(above=0)  # of the perturbation of each meta-parameter


@register("hypergradient", "pes", "metalearn.hypergradient.pes:Pes")
@dataclass
class PesOptions:
    """Persistent evolution strategies: unbiased over runs longer than a segment."""

    name: str = required()
    pairs: int = number(at_least=1)  # of opposite particles
    deviation: float = number(above=0)  # of the perturbation of each meta-parameter in each segment
