"""A rule is taught to do what Adam does, before it learns by runs of its own (Chen et al. 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalearn.hypergradient.base import Estimate, meta_gradient
from metalearn.inner_optimizers import adam, adam_slots
from metalearn.learned_optimizers.config import ImitationOptions
from metalearn.learned_optimizers.run import Run
from metalearn.problem import Inner
from metalearn.rng import generator
from metalearn.task import Batch
from metalearn.tree import Tree, detach, require_grad

TEACHER = "teacher/"  # in front of the names of Adam's slots in a carry


def start(run: Run, meta: Tree) -> Inner:
    """The problems' starts, with the memories of rule and teacher before their first step."""
    inner = run.init(meta, generator(0)).detach()
    return Inner(inner.params, inner.slots | _named(adam_slots(inner.params)))


def imitate(
    run: Run, meta: Tree, carry: Inner, batches: Sequence[Batch], options: ImitationOptions
) -> Estimate:
    """The gradient of the mean squared difference between the rule's updates and Adam's.

    Adam runs; the rule sees the same points and gradients as constants, with a memory of its own. Updates are
    in units of Adam's rate; the mean is over steps, problems and coordinates.
    """
    meta, theta = require_grad(meta), carry.params
    memory = {name: leaf for name, leaf in carry.slots.items() if not name.startswith(TEACHER)}
    moments = {name.removeprefix(TEACHER): leaf for name, leaf in carry.slots.items() if name not in memory}
    errors: list[Tensor] = []
    first, second = options.betas
    for batch in batches:
        _, grads = run.value_and_gradient(theta, batch)
        proposed = run.update(meta, Inner(theta, memory), grads)
        taught = adam(
            theta, moments, grads, options.learning_rate, (first, second), options.epsilon, weight_decay=0.0
        )
        difference = (proposed.params["theta"] - taught.params["theta"]) / options.learning_rate
        errors.append(difference.square().mean())
        theta, memory, moments = taught.params, proposed.slots, taught.slots
    loss = torch.stack(errors).mean()
    told = loss.detach()
    grad = meta_gradient(loss, meta)
    end = Inner(theta, detach(memory) | _named(moments))
    return Estimate(grad, told, end, {"train/imitation_loss": told})


def _named(slots: Tree) -> Tree:
    return {TEACHER + name: leaf for name, leaf in slots.items()}
