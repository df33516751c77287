"""MAML and its family: learn the initialisation that tasks are adapted from."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metalearn.hypergradient.base import Segment
from metalearn.maml import meta_batch, one_by_one, result
from metalearn.maml.choices import check
from metalearn.maml.config import MamlOptions
from metalearn.maml.learn2learn import Backend
from metalearn.maml.meta_batch import MetaGradient
from metalearn.maml.problem import FewShot
from metalearn.maml.stacked import has_form
from metalearn.method import Bilevel, Context, Situation
from metalearn.registry import UserError
from metalearn.task import Batch, Metrics, Split
from metalearn.tree import clip_norm, detach, require_grad

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
DRAWN_STEPS = (1, 10)  # inner steps after which a task's function is drawn (Finn et al. 2017, figure 2)


class Maml(Bilevel):
    """Adam or SGD on the initialisation; one step is one meta-batch of tasks, shared by the processes.

    `inner_steps=0` is the paper's control, joint training: the outer loss at the initialisation itself, with
    no adaptation but in evaluation ("pretrained", Finn et al. 2017, section 5.1). The backend differentiates;
    it is ours that judges, whichever was trained with.
    """

    shares_steps = True

    def __init__(self, options: MamlOptions, context: Context) -> None:
        self.options, self.task, self.machine = options, context.task, context.machine
        self.seed, self.support = context.seed, context.task.spec.support
        self.estimator = check(options, context.hypergradient, context.machine, context.task.spec)
        self.machine.processes.share(
            range(len(self.task.batch("train", 0).x))
        )  # refuses what does not divide
        network = context.network()
        self.problem = FewShot(self.task, network, self.machine, options)
        self.backend = Backend(self.problem) if options.backend == "learn2learn" else None
        self.meta = require_grad(self.problem.start(network))
        self.optimizer = OPTIMIZERS[options.optimizer](self.meta.values(), lr=options.learning_rate)
        self.scores: dict[str, Metrics] = {}  # of the last evaluations, [task steps+1], for `artifacts`

    def step(self, index: int) -> Metrics:
        """The mean meta-gradient of one meta-batch, and one step of the outer optimizer."""
        found = self._meta_gradient(index)
        told = {f"grad/{key}": leaf for key, leaf in found.grad.items()} | {
            _metric(key): leaf.detach() for key, leaf in {**found.metrics, "loss": found.loss}.items()
        }
        means = self.machine.processes.average(told)
        grads = {key: means[f"grad/{key}"] for key in self.meta}
        if self.options.clip is not None:
            grads = clip_norm(grads, self.options.clip)
        for key, leaf in self.meta.items():
            leaf.grad = grads[key]
        self.optimizer.step()
        return {key: leaf for key, leaf in means.items() if not key.startswith("grad/")}

    def situations(self, index: int) -> list[Situation]:
        """Every task of the meta-batch, at its start. Raises UserError for reptile, which has none."""
        if self.estimator is None:
            raise UserError(
                "method.algorithm: got reptile, which follows inner runs and has no hypergradient; choose "
                "method.algorithm=maml"
            )
        support, query = self._parts(self.task.batch("train", index))
        return [self._situation(support, query, number) for number in range(len(support.x))]

    def evaluate(self, split: Split) -> Metrics:
        """All tasks of the split's sweep, after `evaluation_steps` steps and before: `result.summary`."""
        found = self.scores[split] = self._scores(split)
        return result.summary(split, found)

    def state_dict(self) -> dict[str, Any]:
        """Meta-parameters and the outer optimizer's memory."""
        meta = {key: leaf.detach().clone() for key, leaf in self.meta.items()}
        return {"meta": meta, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        with torch.no_grad():
            for key, leaf in self.meta.items():
                leaf.copy_(state["meta"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scores = {}

    def artifacts(self, folder: Path) -> None:
        """The initialisation, `adaptation.json`, and for functions of one number a picture of one task."""
        split: Split = "test" if "test" in self.scores else "valid"
        if split not in self.scores:
            self.evaluate(split)
        result.write_weights(folder, self.meta)
        spec = self.task.spec
        result.write_curve(folder, result.title(self.options), spec.metric, self.scores[split][spec.metric])
        if result.drawable(spec):
            self._draw(folder / "adaptation.svg", split)

    def _meta_gradient(self, index: int) -> MetaGradient:
        """Of this process's share of the tasks."""
        support, query = self._parts(self.task.batch("train", index))
        numbers = self.machine.processes.share(range(len(support.x)))
        if not self.options.vectorise and self.backend is None:
            tasks = [(number, self._situation(support, query, number)) for number in numbers]
            return one_by_one.meta_gradient(tasks, self.estimator, (self.seed, "estimate", index))
        steps, shared = self.options.inner_steps, (_pick(support, numbers), _pick(query, numbers))
        if self.backend is not None:
            return self.backend.meta_gradient(self.meta, *shared, steps)
        return meta_batch.meta_gradient(self.problem, self.meta, *shared, steps, self.estimator)

    def _scores(self, split: Split) -> Metrics:
        """Each metric by task and number of inner steps."""
        together = self.options.vectorise or (self.backend is not None and has_form(self.problem.network))
        path = meta_batch if together else one_by_one
        meta, steps = detach(self.meta), self.options.evaluation_steps
        parts = [
            path.scores(self.problem, meta, *self._parts(batch), steps) for batch in self.task.sweep(split)
        ]
        return {quantity: torch.cat([part[quantity] for part in parts]) for quantity in parts[0]}

    def _situation(self, support: Batch, query: Batch, number: int) -> Situation:
        inner = [one_by_one.task_of(support, number)] * self.options.inner_steps
        segment = Segment(inner, {len(inner): one_by_one.task_of(query, number)})
        return Situation(self.problem, self.meta, self.problem.init(self.meta), segment)

    def _parts(self, batch: Batch) -> tuple[Batch, Batch]:
        """Support and query of all tasks."""
        x, y, key = batch
        support = Batch(x[:, : self.support], y[:, : self.support], (*key, "support"))
        return support, Batch(x[:, self.support :], y[:, self.support :], (*key, "query"))

    def _draw(self, path: Path, split: Split) -> None:
        support, query = (one_by_one.task_of(part, 0) for part in self._parts(next(self.task.sweep(split))))
        steps = [step for step in DRAWN_STEPS if step <= self.options.evaluation_steps]
        result.write_picture(path, self.problem, detach(self.meta), support, query, [0, *steps])


def _pick(batch: Batch, numbers: Sequence[int]) -> Batch:
    """The tasks of these numbers, a range."""
    if len(numbers) == len(batch.x):
        return batch
    part = slice(numbers[0], None, numbers[1] - numbers[0] if len(numbers) > 1 else len(batch.x))
    return Batch(batch.x[part], batch.y[part], batch.key)


def _metric(name: str) -> str:
    return name if "/" in name else f"train/{name}"
