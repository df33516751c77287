"""What a search refuses to start with."""

from typing import Any

from metalearn.darts.config import DartsOptions
from metalearn.darts.selection import LIMITED
from metalearn.darts.space import SearchSpace
from metalearn.hypergradient.base import HyperGradient
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.machine import Machine
from metalearn.problem import Inner
from metalearn.registry import UserError

SAMPLED = ("gumbel", "concrete", "dirichlet")  # relaxations that draw an architecture for each batch


def check_together(options: DartsOptions, machine: Machine, network: SearchSpace) -> None:
    """Raises UserError for parts that do not go together."""
    if machine.options.compile:
        raise UserError(
            "machine.compile: got true, the search has no compiled form; set machine.compile=false"
        )
    dropped = options.regularisation.drop_path
    if dropped and not network.drops_paths:
        raise UserError(
            f"method.regularisation.drop_path: got {dropped}; {type(network).__name__} has no drop path, its "
            "dropouts are in network=; set method.regularisation.drop_path=0"
        )
    _check_draws(options)
    staged, stopping = bool(options.stages.cells), options.stopping.kind
    if staged and LIMITED not in network.choices:
        raise UserError(
            f"method.stages.cells: {type(network).__name__} has no depth to stage; set "
            "method.stages.cells=[] and method.stages.operations=[], or choose network=darts_supernet"
        )
    if stopping != "none" and (staged or options.selection.kind == "perturbation"):
        raise UserError(
            f"method.stopping.kind: got {stopping}; stages and selection by perturbation need all of the "
            "steps; set method.stopping.kind=none, or have one stage and method.selection.kind=strength"
        )


def check_joint(options: DartsOptions, hypergradient: HyperGradient) -> None:
    """Raises UserError where alpha and weights move at once, though one is to answer the other."""
    if options.joint and not isinstance(hypergradient, FirstOrder):
        raise UserError(
            "method.joint: got true, which takes both gradients where alpha and weights stand; set "
            "hypergradient=first_order, or method.joint=null"
        )


def _check_draws(options: DartsOptions) -> None:
    """Raises UserError where a relaxation that samples meets what cannot do with samples."""
    kind, monitor = options.relaxation.kind, options.monitor
    if kind == "dirichlet" and monitor.every and monitor.eigenvalue != "none":
        raise UserError(
            f"method.monitor.eigenvalue: got {monitor.eigenvalue} with method.relaxation.kind=dirichlet, "
            "whose draws have no second derivative; set method.monitor.eigenvalue=none, or another kind"
        )
    if options.noise == "redrawn" and kind in SAMPLED:
        raise UserError(
            f"method.noise: got redrawn with method.relaxation.kind={kind}: the two passes of a finite "
            "difference would see different architectures; set method.noise=common"
        )


def required(hypergradient: HyperGradient | None) -> HyperGradient:
    """The hypergradient. Raises UserError where there is none."""
    if hypergradient is None:
        raise UserError(
            "method darts: got hypergradient=none; choose hypergradient=finite_difference (the paper's "
            "second order), first_order or unrolled"
        )
    return hypergradient


def inner_run(carry: Any) -> Inner:
    """What a hypergradient carries. Raises UserError if that is not one inner run."""
    if not isinstance(carry, Inner):
        raise UserError(
            "method darts: this hypergradient keeps many inner runs, the search has one; choose "
            "hypergradient=finite_difference, first_order or unrolled"
        )
    return carry


def searchable(network: Any) -> SearchSpace:
    """The network. Raises UserError if it is no search space."""
    if not isinstance(network, SearchSpace):
        raise UserError(
            f"method darts: {type(network).__name__} is no search space; choose network=darts_supernet "
            "(images) or network=darts_recurrent_supernet (texts)"
        )
    return network
