"""learn2learn's own MAML inside our loop: the same tasks and the same outer optimizer, as a control."""

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metalearn.machine import full
from metalearn.maml.meta_batch import MetaGradient
from metalearn.maml.one_by_one import task_of
from metalearn.maml.problem import FewShot
from metalearn.registry import UserError
from metalearn.rng import seeded
from metalearn.task import Batch, Metrics
from metalearn.tree import Tree

ALGORITHMS = ("maml", "fomaml")


class Backend:
    """Meta-gradients by `learn2learn.algorithms.MAML`, one task after the other.

    Importing it takes seconds. Raises UserError where the package is absent, and for algorithms other than
    maml and fomaml.
    """

    def __init__(self, problem: FewShot) -> None:
        algorithm = problem.options.algorithm
        if algorithm not in ALGORITHMS:
            raise UserError(
                f"method.backend: got learn2learn with algorithm {algorithm}; it takes "
                f"{' and '.join(ALGORITHMS)} here: choose one of them, or method.backend=metalearn"
            )
        self.problem = problem
        self.learner = _algorithms().MAML(
            copy.deepcopy(problem.network),
            lr=problem.options.inner_learning_rate,
            first_order=algorithm == "fomaml",
        )

    def meta_gradient(self, meta: Tree, support: Batch, query: Batch, steps: int) -> MetaGradient:
        """As `meta_batch.meta_gradient`, for batches [task example ...]."""
        weights = dict(self.learner.module.named_parameters())
        with torch.no_grad():
            for name, leaf in weights.items():
                leaf.copy_(meta[f"init/{name}"])
                leaf.grad = None
        tasks = len(support.x)
        found = [self._task(task_of(support, i), task_of(query, i), steps, tasks) for i in range(tasks)]
        metrics = {key: torch.stack([told[key] for told in found]).mean() for key in found[0]}
        grad = {
            f"init/{name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
            for name, leaf in weights.items()
        }
        return MetaGradient(grad, metrics["loss"], metrics)

    def _task(self, support: Batch, query: Batch, steps: int, tasks: int) -> Metrics:
        """Adapt to one task and add its share to the gradients."""
        task, learner = self.problem.task, self.learner.clone()
        for _ in range(steps):
            learner.adapt(task.loss(self._output(learner, support), support))
        output = self._output(learner, query)
        loss = task.loss(output, query)
        (loss / tasks).backward()
        return {**task.metrics(output.detach(), query), "loss": loss.detach()}

    def _output(self, learner: Any, batch: Batch) -> Tensor:
        with seeded(*batch.key), self.problem.machine.autocast():
            return full(learner(batch.x).logits)


def _algorithms() -> Any:
    """`learn2learn.algorithms`, whose import of gym would print a banner about its age."""
    try:
        with _silence():
            import learn2learn.algorithms as algorithms
    except ImportError as error:
        raise UserError(
            f"method.backend: got learn2learn, which cannot be imported ({error}); install learn2learn, or "
            "choose method.backend=metalearn"
        ) from None
    return algorithms


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without warnings and without what a module writes to standard error."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
