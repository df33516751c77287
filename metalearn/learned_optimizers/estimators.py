"""Which hypergradients can teach a rule, and what must go with them."""

from metalearn.hypergradient.base import HyperGradient
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.evolution import Evolution
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.pes import Pes
from metalearn.hypergradient.unroll import Truncated
from metalearn.learned_optimizers.config import MetaTrainingOptions
from metalearn.registry import UserError

NO_STEP = "which takes no inner step, so that the rule would have no gradient"
AT_END = "which is about the end of a converged run, whereas every point of a run is scored"
UNFIT = [  # estimator, its name, what is wrong with it here
    (FirstOrder, "first_order", NO_STEP),
    (Neumann, "neumann", AT_END),
    (ConjugateGradient, "conjugate_gradient", AT_END),
]


def checked(estimator: HyperGradient | None, options: MetaTrainingOptions) -> HyperGradient:
    """`estimator`, if it can teach a rule by unrolls that are scored at every point. Raises UserError."""
    if estimator is None:
        raise UserError(
            "learned_optimizer: got hypergradient none; choose hypergradient=unrolled, truncated, forward, "
            "evolution or pes"
        )
    for unfit, name, reason in UNFIT:
        if isinstance(estimator, unfit):
            raise UserError(
                f"learned_optimizer: got hypergradient {name}, {reason}; choose hypergradient=unrolled, "
                "truncated, forward, evolution or pes"
            )
    if isinstance(estimator, FiniteDifference) and options.unroll != 1:
        raise UserError(
            "learned_optimizer: got hypergradient finite_difference, which takes exactly one inner step, and "
            f"method.unroll={options.unroll}; set method.unroll=1 method.count_last=true, or choose "
            "hypergradient=unrolled"
        )
    _check_points(estimator, options)
    return estimator


def _check_points(estimator: HyperGradient, options: MetaTrainingOptions) -> None:
    """Refuse what would score too little, or perturb what nothing perturbs."""
    if options.unroll == 1 and not options.count_last and not isinstance(estimator, Pes):
        raise UserError(
            "learned_optimizer: got method.unroll=1 with count_last=false, which scores an unroll before the "
            "rule has moved anything, so that its gradient is zero; set method.count_last=true, raise "
            "method.unroll, or choose hypergradient=pes"
        )
    if isinstance(estimator, Truncated) and estimator.window == 1 and not options.count_last:
        raise UserError(
            "hypergradient.window: got 1 with method.count_last=false, which scores nothing that the last "
            "step has moved, so that the gradient is zero; raise hypergradient.window or set "
            "method.count_last=true"
        )
    if options.objective == "last" and not options.count_last:
        raise UserError(
            "method.objective: got last with count_last=false, which leaves nothing to score; set "
            "method.count_last=true, or choose method.objective=all"
        )
    if options.particles != "one_by_one" and not isinstance(estimator, (Evolution, Pes)):
        raise UserError(
            f"method.particles: got {options.particles}, for an estimator that has none; choose "
            "hypergradient=pes or evolution, or set method.particles=one_by_one"
        )
