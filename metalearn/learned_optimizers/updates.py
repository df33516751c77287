"""What a trained optimizer does, beside Adam and gradient descent (Andrychowicz et al. 2016, appendix B).

Along the trained optimizer's own run, and of the present gradient alone while all that came before stays.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.inner_optimizers import adam, adam_slots, sgd, sgd_slots
from metalearn.learned_optimizers.config import UpdatesOptions
from metalearn.learned_optimizers.draw_updates import draw
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.problem import Inner
from metalearn.task import Batch
from metalearn.tree import Tree

LEARNED = "learned optimizer"
LARGEST = 2**19  # coordinates that are updated at once
Step = Callable[[Inner, Tree], Inner]
Row = Float[Tensor, "1 coordinates"]


class Moment(NamedTuple):
    """One step of the trained optimizer's run: where it stands, what it sees, and every memory so far."""

    theta: Row
    grad: Row
    memories: dict[str, Tree]  # by optimizer, before the step


class Updates(NamedTuple):
    """What is shown. `proposed` is of the first of the coordinates alone."""

    coordinates: list[str]  # tensor and place in it
    gradients: list[list[float]]  # [coordinate step]
    updates: dict[str, list[list[float]]]  # by optimizer, [coordinate step]
    varied: list[float]  # [point], gradients that are put in the present one's place
    proposed: dict[str, list[list[float]]]  # by optimizer, [step point]


def write_updates(
    folder: Path, rule: UpdateRule, meta: Tree, optimizee: Optimizee, options: UpdatesOptions
) -> None:
    """`updates.json` and `updates.svg` (figures 10 to 13), of the first validation problem."""
    found = measure(rule, meta, optimizee, options)
    (folder / "updates.json").write_text(json.dumps(found._asdict(), indent=1) + "\n")
    draw(found, folder / "updates.svg")


@torch.no_grad()
def measure(rule: UpdateRule, meta: Tree, optimizee: Optimizee, options: UpdatesOptions) -> Updates:
    """All updates of the first steps of one run. Of functions it is the first of a batch."""
    steps = _steps(rule, meta, optimizee.layout, options)
    moments = _run(rule, steps, optimizee, min(options.steps, optimizee.options.horizon))
    grads = torch.cat([moment.grad for moment in moments])
    chosen = _telling(grads)
    made = {name: torch.cat([_update(step, name, m) for m in moments]) for name, step in steps.items()}
    reach = grads[:, chosen[0]].abs().max() if options.reach is None else grads.new_tensor(options.reach)
    varied = reach * torch.linspace(-1, 1, options.points, dtype=grads.dtype, device=grads.device)
    proposed = {
        name: [proposals(step, name, moment, chosen[0], varied).tolist() for moment in moments]
        for name, step in steps.items()
    }
    return Updates(
        [_named(optimizee.layout, coordinate) for coordinate in chosen],
        grads[:, chosen].T.tolist(),
        {name: update[:, chosen].T.tolist() for name, update in made.items()},
        varied.tolist(),
        proposed,
    )


def proposals(
    step: Step, name: str, moment: Moment, coordinate: int, varied: Float[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """A coordinate's update if its present gradient were another, and nothing else, nor what came before."""
    found = []
    for part in varied.split(max(1, LARGEST // moment.grad.shape[1])):
        grads = moment.grad.repeat(len(part), 1)
        grads[:, coordinate] = part
        theta = moment.theta.repeat(len(part), 1)
        memory = {key: _repeated(leaf, len(part)) for key, leaf in moment.memories[name].items()}
        after = step(Inner({"theta": theta}, memory), {"theta": grads}).params["theta"]
        found.append((after - theta)[:, coordinate])
    return torch.cat(found)


def _steps(rule: UpdateRule, meta: Tree, layout: Layout, options: UpdatesOptions) -> dict[str, Step]:
    """The optimizers that are shown."""
    first, second = options.betas

    def by_adam(inner: Inner, grads: Tree) -> Inner:
        rate, epsilon = options.adam_learning_rate, options.epsilon
        return adam(inner.params, inner.slots, grads, rate, (first, second), epsilon, weight_decay=0.0)

    def by_sgd(inner: Inner, grads: Tree) -> Inner:
        return sgd(inner.params, inner.slots, grads, options.sgd_learning_rate, 0.0, weight_decay=0.0)

    return {
        LEARNED: lambda inner, grads: rule.update(meta, inner, grads, layout),
        "ADAM": by_adam,
        "SGD": by_sgd,
    }


def _run(rule: UpdateRule, steps: dict[str, Step], optimizee: Optimizee, count: int) -> list[Moment]:
    """The trained optimizer's run, of which the others only see the gradients."""
    theta = optimizee.start("valid", (0,))[:1]
    start = {"theta": theta}
    memories = {
        LEARNED: rule.slots(theta, optimizee.layout),
        "ADAM": adam_slots(start),
        "SGD": sgd_slots(start),
    }
    moments = []
    for batch in optimizee.batches("valid", (0,), 0, count):
        alone = Batch(batch.x[:1], batch.y[:1], batch.key)
        with torch.enable_grad():
            _, grad = optimizee.losses_and_gradients(theta, alone)
        moments.append(Moment(theta, grad, memories))
        after = {
            name: step(Inner({"theta": theta}, memories[name]), {"theta": grad})
            for name, step in steps.items()
        }
        theta, memories = after[LEARNED].params["theta"], {name: inner.slots for name, inner in after.items()}
    return moments


def _update(step: Step, name: str, moment: Moment) -> Row:
    after = step(Inner({"theta": moment.theta}, moment.memories[name]), {"theta": moment.grad})
    return after.params["theta"] - moment.theta


def _telling(grads: Float[Tensor, "step coordinates"]) -> list[int]:
    """The coordinate with the largest gradients, and the middle one of those that have any."""
    sizes = grads.abs().mean(0).nan_to_num(0.0)
    order, alive = sizes.argsort(descending=True), int((sizes > 0).sum())
    return list(dict.fromkeys(order[[0, alive // 2 if alive > 1 else 0]].tolist()))


def _named(layout: Layout, coordinate: int) -> str:
    owner = int(layout.owner[coordinate])
    return f"{list(layout.shapes)[owner]}[{coordinate - sum(layout.sizes[:owner])}]"


def _repeated(leaf: Tensor, count: int) -> Tensor:
    """A leaf for `count` equal problems; a lone number is one for all."""
    return leaf.repeat(count, *[1] * (leaf.dim() - 1)) if leaf.dim() else leaf
