"""Hypergradients by forward mode: the inner run is followed together with its derivatives."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp, vmap

from metalearn.hypergradient.base import Estimate, HyperGradient, Segment, check_segment, pull_back
from metalearn.hypergradient.config import ForwardOptions
from metalearn.hypergradient.guard import check_twice_differentiable, second_order
from metalearn.problem import Inner, Problem, loss_and_gradient
from metalearn.rng import generator
from metalearn.task import Batch
from metalearn.tree import Tree, count, detach, require_grad, tree_map


class Forward(HyperGradient):
    """The exact hypergradient by forward mode (Franceschi et al. 2017, section 3.2).

    With z_t the state of the inner run, dz_{t+1} = A_t dz_t + B_t, the derivatives of one inner step by state
    and meta-parameters; an outer loss adds d outer / d z_t dz_t + d outer / d meta. `chunk` columns of dz are
    followed side by side, as many passes are made over the segment as all columns need.

    Cost for P meta-parameters and K inner steps: P K Hessian-vector products of the inner loss, and P / chunk
    times the K inner steps; memory for one inner step and `chunk` states, whatever K. Any P is allowed, and
    many are slow: the time of `unrolled` does not grow with P.
    """

    def __init__(self, options: ForwardOptions) -> None:
        self.chunk = options.chunk

    def init(self, problem: Problem, meta: Tree, rng: torch.Generator) -> Inner:
        """A fresh inner run."""
        return problem.init(meta, rng).detach()

    @second_order("forward")
    def estimate(
        self,
        problem: Problem,
        meta: Tree,
        carry: Inner,
        segment: Segment,
        rng: torch.Generator,  # noqa: ARG002
    ) -> Estimate:
        """As `Unrolled`."""
        check_segment(segment)
        meta, carry, products = detach(meta), carry.detach(), _Products()
        passes = [
            _Following(problem, meta, _units(meta, start, self.chunk), products).run(carry, segment)
            for start in range(0, count(meta), self.chunk)
        ]
        _, loss, inner = passes[0]
        columns = torch.cat([slopes for slopes, _, _ in passes])
        parts = columns.split([leaf.numel() for leaf in meta.values()])
        grad = {
            key: part.view_as(leaf).to(leaf) for part, (key, leaf) in zip(parts, meta.items(), strict=True)
        }
        return Estimate(grad, loss, inner)


class _Following:
    """One pass: an inner run and its derivatives along `directions` of meta, each leaf [direction ...]."""

    def __init__(self, problem: Problem, meta: Tree, directions: Tree, products: "_Products") -> None:
        self.problem, self.meta, self.directions, self.products = problem, meta, directions, products
        self.width = len(next(iter(directions.values())))

    def run(
        self, inner: Inner, segment: Segment
    ) -> tuple[Float[Tensor, " direction"], Float[Tensor, ""], Inner]:
        """The derivative of the sum of outer losses by direction, that sum, and where the run ends."""
        tangent = Inner(self._zeros(inner.params), self._zeros(_floating(inner.slots)))
        slopes, losses, steps = [], [], len(segment.inner)
        for step in range(steps + 1):
            if step in segment.outer:
                loss, slope = self._score(inner.params, tangent.params, segment.outer[step])
                losses.append(loss)
                slopes.append(slope)
            if step < steps:
                grads, pushed = self._gradient(inner.params, tangent.params, segment.inner[step], step == 0)
                tangent, inner = self._moved(inner, grads, tangent, pushed), self._update(inner, grads)
        return torch.stack(slopes).sum(0), torch.stack(losses).sum(), inner

    def _score(self, params: Tree, tangent: Tree, batch: Batch) -> tuple[Tensor, Tensor]:
        """An outer loss and its derivative by direction."""
        meta, params = require_grad(self.meta), require_grad(params)
        loss = self.problem.outer_loss(meta, params, batch)
        by_params, by_meta = pull_back([loss], None, params, meta)
        slopes = [_along(by_params, tangent), _along(by_meta, self.directions)]
        return loss.detach(), torch.stack(slopes).sum(0)

    def _gradient(self, params: Tree, tangent: Tree, batch: Batch, check: bool) -> tuple[Tree, Tree]:
        """The inner gradient and its derivatives: those by params of <d loss, (tangent, directions)>."""
        if not self.problem.second_derivatives:
            _, grads = loss_and_gradient(self.problem, self.meta, params, batch)
            return grads, self._zeros(grads)
        meta, params = require_grad(self.meta), require_grad(params)
        loss = self.problem.inner_loss(meta, params, batch)
        if check:
            check_twice_differentiable(loss, params | {f"meta/{key}": leaf for key, leaf in meta.items()})
        leaves = [*params.values(), *meta.values()]
        slopes = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        along = [*tangent.values(), *self.directions.values()]
        pairs = [
            (one, by) for one, by in zip(slopes, along, strict=True) if one is not None and one.requires_grad
        ]
        pushed = self._zeros(params)
        if pairs:
            found = self.products([one for one, _ in pairs], [by for _, by in pairs], list(params.values()))
            pushed = dict(zip(params, found, strict=True))
        grads = {
            key: torch.zeros_like(leaf) if slope is None else slope.detach()
            for (key, leaf), slope in zip(params.items(), slopes, strict=False)
        }
        return grads, pushed

    def _update(self, inner: Inner, grads: Tree) -> Inner:
        return self.problem.update(self.meta, inner, grads).detach()

    def _moved(self, inner: Inner, grads: Tree, tangent: Inner, pushed: Tree) -> Inner:
        """The tangent after one update, at the place before it."""
        slots = _floating(inner.slots)
        fixed = {key: leaf for key, leaf in inner.slots.items() if key not in slots}

        def update(meta: Tree, params: Tree, slots: Tree, grads: Tree) -> tuple[Tree, Tree]:
            after = self.problem.update(meta, Inner(params, slots | fixed), grads)
            return after.params, _floating(after.slots)

        def push(*tangents: Tree) -> tuple[Tree, Tree]:
            return jvp(update, (self.meta, inner.params, slots, grads), tangents)[1]

        moved = vmap(push, randomness="same")(self.directions, tangent.params, tangent.slots, pushed)
        # the tangent of a lone float32 times a Python number is float64 in torch 2.13
        return Inner(
            *(
                tree_map(lambda leaf, like: leaf.to(like.dtype), tree, by)
                for tree, by in zip(moved, inner, strict=True)
            )
        )

    def _zeros(self, tree: Tree) -> Tree:
        return {key: leaf.new_zeros(self.width, *leaf.shape) for key, leaf in tree.items()}


class _Products:
    """Vector-Jacobian products for many vectors: side by side where torch does that rightly, else in turn.

    torch's batching of a backward pass lacks rules (it raises for the second derivative of group
    normalisation), and rules of its kin are wrong in silence (gradients of batched normalisation, torch
    2.13). So it is held to vectors in turn at its first use in an estimate.
    """

    def __init__(self) -> None:
        self.batched: bool | None = None  # not known yet

    def __call__(
        self, outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """sum_i vectors[i][k] * d outputs[i] / d input for each k and input, [k ...]; frees the graph."""
        if self.batched is None:
            self.batched = _batches(outputs, inputs)
        return (_together if self.batched else _in_turn)(outputs, vectors, inputs, False)


def _batches(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether two random vectors give the same together as in turn; warns if not."""
    rng = generator("forward", "batches")
    drawn = [torch.randn(2, *output.shape, generator=rng).to(output) for output in outputs]
    expected = _in_turn(outputs, drawn, inputs, True)
    try:
        found = _together(outputs, drawn, inputs, True)
    except RuntimeError as error:
        return _warn(str(error).splitlines()[0])
    wrong = torch.stack([torch.linalg.vector_norm(a - b) for a, b in zip(found, expected, strict=True)])
    right = torch.stack([torch.linalg.vector_norm(leaf) for leaf in expected])
    allowed = torch.finfo(right.dtype).eps ** (2 / 3)
    return bool(wrong.norm() <= allowed * right.norm()) or _warn("torch errs in batches of them here")


def _warn(why: str) -> bool:
    warnings.warn(f"forward: derivatives go one by one, which is slower: {why}", stacklevel=2)
    return False


def _together(
    outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor], keep: bool
) -> list[Tensor]:
    found = torch.autograd.grad(
        outputs, inputs, vectors, retain_graph=keep, allow_unused=True, is_grads_batched=True
    )
    width = len(vectors[0])
    return [
        leaf.new_zeros(width, *leaf.shape) if rows is None else rows
        for leaf, rows in zip(inputs, found, strict=True)
    ]


def _in_turn(
    outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor], keep: bool
) -> list[Tensor]:
    rows, width = [], len(vectors[0])
    for place in range(width):
        chosen = [vector[place] for vector in vectors]
        last = place == width - 1 and not keep
        rows.append(
            torch.autograd.grad(
                outputs, inputs, chosen, retain_graph=not last, allow_unused=True, materialize_grads=True
            )
        )
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _units(meta: Tree, start: int, width: int) -> Tree:
    """The unit directions of entries `start` and on, `width` of them at most, all leaves in one row."""
    size = count(meta)
    width = min(width, size - start)
    rows = torch.zeros(width, size)
    rows.diagonal(start).fill_(1.0)
    parts = rows.split([leaf.numel() for leaf in meta.values()], 1)
    return {
        key: part.reshape(width, *leaf.shape).to(leaf)
        for part, (key, leaf) in zip(parts, meta.items(), strict=True)
    }


def _along(slope: Tree, tangent: Tree) -> Float[Tensor, " direction"]:
    """<slope, tangent> for each direction."""
    width = len(next(iter(tangent.values())))
    return torch.stack(
        [tangent[key].reshape(width, -1) @ leaf.reshape(-1) for key, leaf in slope.items()]
    ).sum(0)


def _floating(tree: Tree) -> Tree:
    """The leaves that have derivatives: counts in whole numbers do not."""
    return {key: leaf for key, leaf in tree.items() if leaf.is_floating_point()}
