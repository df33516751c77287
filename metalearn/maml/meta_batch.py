"""All tasks of a meta-batch in one pass: hypergradients and adaptation.

Perceptrons and conv4 are computed with stacked weights (`stacked.py`), for speed; any other network, and
iMAML, by `vmap`. There `vmap` is the outermost transform, always: gradients taken of a vmapped function (grad
over vmap) are silently wrong in second order through affine normalisations (torch 2.13; 16 % on one MAML step
of a convnet).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vjp, vmap
from torch.nn.modules.dropout import _DropoutNd

from metalearn.hypergradient.base import HyperGradient
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient, solve
from metalearn.hypergradient.implicit import residual
from metalearn.maml.problem import FewShot
from metalearn.maml.stacked import SideBySide, has_form, unlaid
from metalearn.problem import inner_step
from metalearn.registry import UserError
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree, add, detach, gradient, require_grad, tree_map

PART = 320_000  # numbers of input in one pass on the CPU; of Omniglot's tasks 4 with 15 queries, 8 with 1


class MetaGradient(NamedTuple):
    """The mean hypergradient of a meta-batch's tasks, and the means of what came with it; all detached."""

    grad: Tree  # as the meta-parameters
    loss: Float[Tensor, ""]  # of the queries after adaptation
    metrics: Metrics  # of the queries after adaptation, as the task names them


def meta_gradient(
    problem: FewShot,
    meta: Tree,
    support: Batch,
    query: Batch,
    steps: int,
    solver: HyperGradient | None = None,
) -> MetaGradient:
    """The hypergradient of `problem.options.algorithm` after `steps` inner steps on each task.

    Batches are [task example ...]. maml, anil, meta_sgd: exact, through the inner run; fomaml: the gradient
    at its end; reptile: minus the way the inner run went (Nichol et al. 2018, divided by no learning rate);
    imaml: implicit at its end by the conjugate gradients of `solver`, with their metrics.
    Raises UserError for networks that `vmap` cannot run.
    """
    if has_form(problem.network) and problem.options.algorithm != "imaml":
        return stacked_gradient(problem, meta, support, query, steps)
    return vmapped_gradient(problem, meta, support, query, steps, solver)


def stacked_gradient(problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int) -> MetaGradient:
    """`meta_gradient` by one pass through the tasks side by side; on the CPU in parts, for memory's speed."""
    tasks = len(support.x)
    found, size = [], _at_once(support, query, steps)
    for start in range(0, tasks, size):
        end = start + size
        one, other = (Batch(x[start:end], y[start:end], key) for x, y, key in (support, query))
        found.append((len(one.x) / tasks, _stacked(problem, meta, one, other, steps)))

    def mean(*leaves: Tensor) -> Tensor:
        return torch.stack([share * leaf for (share, _), leaf in zip(found, leaves, strict=True)]).sum(0)

    grads, losses, metrics = zip(*(one for _, one in found), strict=True)
    return MetaGradient(tree_map(mean, *grads), mean(*losses), tree_map(mean, *metrics))


def _at_once(support: Batch, query: Batch, steps: int) -> int:
    """How many tasks one pass takes: equal parts whose memory malloc keeps, not to be zeroed again."""
    tasks, numbers = len(support.x), steps * support.x.numel() + query.x.numel()
    parts = 1 if support.x.is_cuda else -(-numbers // PART)
    return -(-tasks // parts)


def _stacked(problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int) -> MetaGradient:
    """`stacked_gradient` of so many tasks at once."""
    tasks = len(support.x)
    together, reptile = SideBySide(problem, tasks), problem.options.algorithm == "reptile"
    meta = require_grad(meta)
    inner = together.init(meta)
    for _ in range(steps):
        inner = inner_step(together, meta, inner, support, create_graph=not reptile)
    if reptile:
        end = detach(inner.params)
        with torch.no_grad():
            loss, metrics = together.judge(meta, end, query)
        grads = {f"init/{name}": -delta.mean(dim=0) for name, delta in unlaid(end, _init(meta)).items()}
        return MetaGradient(grads, loss / tasks, _mean(metrics))
    loss, metrics = together.judge(meta, inner.params, query)
    grads = gradient(loss / tasks, meta)
    return MetaGradient(grads, loss.detach() / tasks, _mean(metrics))


def vmapped_gradient(
    problem: FewShot,
    meta: Tree,
    support: Batch,
    query: Batch,
    steps: int,
    solver: HyperGradient | None = None,
) -> MetaGradient:
    """`meta_gradient` by `vmap` over the gradient of one task. Raises UserError where it cannot be."""
    rule = _RULES.get(problem.options.algorithm, _unrolled)
    if rule is _implicit:
        rule = partial(_implicit, solver=_required(solver))

    def one(support: Batch, query: Batch) -> tuple[Tree, tuple[Tensor, Metrics]]:
        return rule(problem, meta, support, query, steps)

    grads, (loss, metrics) = _over_tasks(problem, one, support, query)
    return MetaGradient(_mean(grads), loss.mean(), _mean(metrics))


def adapt(problem: FewShot, meta: Tree, support: Batch, steps: int) -> Tree:
    """Where each task's inner run ends: delta by name, [task ...]; the network's are `problem.weights`."""
    if has_form(problem.network):
        end = _stacked_run(SideBySide(problem, len(support.x)), meta, support, steps)[-1]
        return unlaid(end, _init(meta))
    return _over_tasks(problem, lambda batch: _run(problem, meta, batch, steps), support)


def scores(problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int) -> Metrics:
    """The queries' metrics after 0, 1, ... `steps` inner steps, each [task steps+1]."""
    if has_form(problem.network):
        together = SideBySide(problem, len(support.x))
        places = _stacked_run(together, meta, support, steps)
        with torch.no_grad():
            rows = [together.judge(meta, params, query)[1] for params in places]
        return {quantity: torch.stack([row[quantity] for row in rows], dim=1) for quantity in rows[0]}

    def one(support: Batch, query: Batch) -> Metrics:
        places = _places(problem, meta, support, steps)
        found = [problem.judge(meta, params, query)[1] for params in places]
        return {quantity: torch.stack([metrics[quantity] for metrics in found]) for quantity in found[0]}

    return _over_tasks(problem, one, support, query)


def _stacked_run(together: SideBySide, meta: Tree, support: Batch, steps: int) -> list[Tree]:
    """Where the tasks' inner runs stand after 0, 1, ... `steps` steps."""
    meta, inner = detach(meta), together.init(meta)
    places = [inner.params]
    for _ in range(steps):
        inner = inner_step(together, meta, inner, support).detach()
        places.append(inner.params)
    return places


def _init(meta: Tree) -> Tree:
    """The initialisation by the parameters' own names."""
    return {key.removeprefix("init/"): leaf for key, leaf in meta.items() if key.startswith("init/")}


def _unrolled(
    problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int
) -> tuple[Tree, tuple[Tensor, Metrics]]:
    """Reverse mode through the inner run of one task; without second derivatives, the partial one at its end.

    The latter leaves out no more than that: no first-order algorithm has an update that depends on meta.
    """
    end = None if problem.second_derivatives else _run(problem, meta, support, steps)

    def outer(meta: Tree) -> tuple[Tensor, Metrics]:
        params = _run(problem, meta, support, steps) if end is None else end
        return problem.judge(meta, params, query)

    found, (loss, metrics) = grad_and_value(outer, has_aux=True)(meta)
    return found, (loss, metrics)


def _reptile(
    problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int
) -> tuple[Tree, tuple[Tensor, Metrics]]:
    """Minus the way of one task's inner run."""
    params = _run(problem, meta, support, steps)
    way = {f"init/{name}": -delta for name, delta in params.items()}
    return way, problem.judge(meta, params, query)


def _implicit(
    problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: int, solver: ConjugateGradient
) -> tuple[Tree, tuple[Tensor, Metrics]]:
    """The implicit function theorem at the end of one task's inner run (Rajeswaran et al. 2019).

    As `differentiate_end`, whose autograd does not run under `vmap`.
    """
    params = _run(problem, meta, support, steps)

    def outer(meta: Tree, params: Tree) -> tuple[Tensor, Metrics]:
        return problem.judge(meta, params, query)

    def slopes(meta: Tree, params: Tree) -> Tree:
        return grad(problem.inner_loss, argnums=1)(meta, params, support)

    (direct, v), (loss, metrics) = grad_and_value(outer, argnums=(0, 1), has_aux=True)(meta, params)
    pull = vjp(slopes, meta, params)[1]

    def product(u: Tree) -> Tree:
        return add(pull(u)[1], u, solver.damping)

    q, negative = solve(product, v, solver.iterations)
    metrics |= {"hypergradient/negative_curvature": negative.to(loss.dtype)}
    metrics |= {"hypergradient/residual": residual(product, q, v)}
    return add(direct, pull(q)[0], -1.0), (loss, metrics)


_RULES: dict[str, Callable[..., Any]] = {"reptile": _reptile, "imaml": _implicit}


def _places(problem: FewShot, meta: Tree, support: Batch, steps: int) -> Iterator[Tree]:
    """Where one task's inner run stands after 0, 1, ... `steps` steps."""
    inner = problem.init(meta)
    yield inner.params
    for _ in range(steps):
        slope = grad(problem.inner_loss, argnums=1)(meta, inner.params, support)
        inner = problem.update(meta, inner, slope)
        yield inner.params


def _run(problem: FewShot, meta: Tree, support: Batch, steps: int) -> Tree:
    """Where one task's inner run ends."""
    *_, end = _places(problem, meta, support, steps)
    return end


def _over_tasks(problem: FewShot, function: Callable[..., Any], *batches: Batch) -> Any:
    """`function` of one task's part of each batch, for all tasks at once; results are [task ...]."""
    _refuse_state(problem.network)

    def one(*tensors: tuple[Tensor, Tensor]) -> Any:
        pairs = zip(tensors, batches, strict=True)
        return function(*(Batch(x, y, batch.key) for (x, y), batch in pairs))

    with torch.no_grad():
        try:
            return vmap(one)(*((batch.x, batch.y) for batch in batches))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            told = str(error).partition(". ")[0]
            raise _not_vectorisable(
                problem.network, f"has an operation that vmap refuses ({told})"
            ) from error


def _refuse_state(network: nn.Module) -> None:
    """Raises UserError for what vmap has no rule for: per-task noise and buffers that a pass moves."""
    for module in network.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise _not_vectorisable(network, "has dropout")
        if getattr(module, "running_mean", None) is not None:
            raise _not_vectorisable(network, "keeps running statistics")


def _not_vectorisable(network: nn.Module, why: str) -> UserError:
    return UserError(
        f"method.vectorise: got true, but {type(network).__name__} {why}, which cannot run for all tasks of "
        "a meta-batch at once; set method.vectorise=false"
    )


def _required(solver: HyperGradient | None) -> ConjugateGradient:
    if not isinstance(solver, ConjugateGradient):
        raise UserError(
            f"method.vectorise: got true with imaml and {type(solver).__name__}; vectorised, imaml takes "
            "hypergradient=conjugate_gradient; choose it, or set method.vectorise=false"
        )
    return solver


def _mean(tree: Tree) -> Tree:
    return tree_map(lambda leaf: leaf.mean(dim=0), tree)
