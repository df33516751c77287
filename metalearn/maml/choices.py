"""Which algorithm, estimator and path go together; every refusal says what does."""

from metalearn.hypergradient.base import HyperGradient
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.forward import Forward
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.pes import Pes
from metalearn.hypergradient.recompute import unroll_recomputed
from metalearn.hypergradient.unroll import Truncated, Unrolled
from metalearn.machine import Machine
from metalearn.maml.config import MamlOptions
from metalearn.registry import UserError, name_of
from metalearn.task import TaskSpec

IMPLICIT = (ConjugateGradient, Neumann)


def check(
    options: MamlOptions, estimator: HyperGradient | None, machine: Machine, spec: TaskSpec
) -> HyperGradient | None:
    """The estimator, None for reptile. Raises UserError for what cannot run or would not mean its name."""
    if spec.kind != "few_shot":
        raise UserError(
            f"method maml: task {spec.name} is a {spec.kind}, must be few_shot; choose task=sinusoid or "
            "task=omniglot"
        )
    if machine.options.compile:
        raise UserError("machine.compile: got true, maml has no compiled form; set machine.compile=false")
    if options.inner_steps == 0 and options.algorithm != "maml":
        raise UserError(
            f"method.inner_steps: got 0 with {options.algorithm}; 0 is joint training, without adaptation, "
            "for method.algorithm=maml: choose it, or raise inner_steps"
        )
    _check_estimator(options, estimator)
    if options.backend == "learn2learn":
        _check_learn2learn(options, estimator)
    elif options.vectorise:
        _check_vectorised(options, estimator)
    return estimator


def _check_estimator(options: MamlOptions, estimator: HyperGradient | None) -> None:
    algorithm, got = options.algorithm, f"hypergradient: got {_name(estimator)} with {options.algorithm}"
    if algorithm == "reptile":
        if estimator is not None:
            raise UserError(f"{got}, which follows the inner run instead; set hypergradient=none")
        return
    if algorithm == "imaml":
        if not isinstance(estimator, IMPLICIT):
            raise UserError(f"{got}, which is implicit: choose hypergradient=conjugate_gradient or neumann")
        if not options.proximal:
            raise UserError(
                "method.proximal: got 0 with imaml, must be above 0: nothing else holds its inner runs"
            )
        return
    if estimator is None:
        raise UserError(f"{got}, which needs one: choose hypergradient=unrolled")
    if isinstance(estimator, Pes):
        raise UserError(
            f"{got}, which is for runs longer than a segment; here a segment is the whole run: choose "
            "hypergradient=evolution or unrolled"
        )
    if isinstance(estimator, FirstOrder):
        raise UserError(
            f"{got}, which takes no inner step; choose method.algorithm=fomaml hypergradient=unrolled"
        )
    if isinstance(estimator, IMPLICIT) and algorithm != "anil":
        raise UserError(
            f"{got}, whose converged inner run would not depend on the initialisation; choose "
            "method.algorithm=imaml, or hypergradient=unrolled"
        )
    if isinstance(estimator, FiniteDifference) and options.inner_steps != 1:
        raise UserError(
            f"{got}, which takes exactly one inner step; set method.inner_steps=1 "
            f"(got {options.inner_steps}), or hypergradient=unrolled"
        )
    if algorithm == "fomaml" and not isinstance(estimator, Unrolled | Truncated | Forward):
        raise UserError(f"{got}, which leaves out second derivatives; choose hypergradient=unrolled")


def _check_learn2learn(options: MamlOptions, estimator: HyperGradient | None) -> None:
    if options.vectorise:
        raise UserError(
            "method.vectorise: got true with backend learn2learn, which takes one task after the other; set "
            "method.vectorise=false"
        )
    if not isinstance(estimator, Unrolled) or _recomputes(estimator):
        raise UserError(
            f"hypergradient: got {_name(estimator)} with backend learn2learn, which differentiates by itself "
            "through every inner step; choose hypergradient=unrolled hypergradient.recompute=false"
        )


def _check_vectorised(options: MamlOptions, estimator: HyperGradient | None) -> None:
    if options.algorithm == "reptile":
        return
    fits = isinstance(estimator, ConjugateGradient if options.algorithm == "imaml" else Unrolled)
    if not fits or _recomputes(estimator):
        wanted = "conjugate_gradient" if options.algorithm == "imaml" else "unrolled, without recompute"
        raise UserError(
            f"hypergradient: got {_name(estimator)} with method.vectorise=true, which takes {wanted}; choose "
            "it, or set method.vectorise=false"
        )


def _recomputes(estimator: HyperGradient | None) -> bool:
    return isinstance(estimator, Unrolled) and estimator.unroll is unroll_recomputed


def _name(estimator: HyperGradient | None) -> str:
    if estimator is None:
        return "none"
    recompute = " with recompute" if _recomputes(estimator) else ""
    return f"{name_of('hypergradient', estimator)}{recompute}"
