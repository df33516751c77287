"""Hyper-parameters that descend the validation loss by their hypergradient."""

import copy
from pathlib import Path
from typing import Any

import torch

from metalearn.hypergradient.base import HyperGradient
from metalearn.hypergradient.conjugate_gradient import ConjugateGradient
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.pes import Pes
from metalearn.hyperparameters.config import HyperparametersOptions
from metalearn.hyperparameters.gain import Gain
from metalearn.hyperparameters.problem import NetworkTraining
from metalearn.hyperparameters.result import write_result
from metalearn.hyperparameters.runs import Runs
from metalearn.method import Bilevel, Context, Situation
from metalearn.registry import UserError, name_of
from metalearn.rng import generator
from metalearn.task import Metrics, Split
from metalearn.tree import Tree, clip_norm, detach, require_grad, scale, tree_map


class Hyperparameters(Bilevel):
    """Adam on log learning rates and log penalties; one step is `runs` fresh inner runs from start to end.

    Each run has its own start and batches, drawn once and never again, so that what is learned is good for
    runs in expectation. Processes share the runs of a step.
    """

    shares_steps = True

    def __init__(self, options: HyperparametersOptions, context: Context) -> None:
        self.estimator = _usable(context.hypergradient, options)
        self.options, self.seed, self.machine = options, context.seed, context.machine
        self.machine.processes.share(range(options.runs))  # refuses runs that do not divide
        self.problem = training(context, options)
        self.runs = Runs(self.problem, context.seed)
        start = self.problem.space.start()
        self.meta = require_grad(tree_map(torch.clone, start))
        self.optimizer = torch.optim.Adam(self.meta.values(), options.meta_learning_rate)
        self.gain = Gain(self.runs, options.evaluation_runs, start)

    def step(self, index: int) -> Metrics:
        """The mean hypergradient of this step's runs, and one step of Adam."""
        runs = self._numbers(index)
        share = self.machine.processes.share(runs)
        total: Tree = {}
        for run in share:
            for key, leaf in self._estimate(run).items():
                total[key] = total[key] + leaf if key in total else leaf
        means = self.machine.processes.average(scale(total, 1 / len(share)))
        grads = {key: means[f"grad/{key}"] for key in self.meta}
        if self.options.clip is not None:
            grads = clip_norm(grads, self.options.clip)
        for key, leaf in self.meta.items():
            leaf.grad = grads[key]
        self.optimizer.step()
        told = {key: value for key, value in means.items() if not key.startswith("grad/")}
        return told | self._told()

    def situations(self, index: int) -> list[Situation]:
        """Every run of the step, at its start."""
        return [self._situation(run) for run in self._numbers(index)]

    def evaluate(self, split: Split) -> Metrics:
        """The gain over the starting hyper-parameters on `evaluation_runs` fresh runs."""
        return self.gain.measure(split, detach(self.meta))

    def state_dict(self) -> dict[str, Any]:
        """Hyper-parameters and Adam's moments."""
        meta = {key: leaf.detach().clone() for key, leaf in self.meta.items()}
        return {"meta": meta, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        with torch.no_grad():
            for key, leaf in self.meta.items():
                leaf.copy_(state["meta"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.gain.learned.clear()

    def artifacts(self, folder: Path) -> None:
        """The learned hyper-parameters and the mean training curves before and after."""
        write_result(folder, self.problem.space, self.gain, self.meta, "learned")

    def _numbers(self, index: int) -> range:
        return range(index * self.options.runs, (index + 1) * self.options.runs)

    def _situation(self, run: int) -> Situation:
        inner = self.problem.init(self.meta, self.runs.stream("train", run))
        segment = self.runs.segment("train", run, self.options.outer_batches, self.options.outer_every)
        return Situation(self.problem, self.meta, inner, segment)

    def _estimate(self, run: int) -> Tree:
        """The hypergradient of one run by `grad/NAME`, its mean outer loss, what the estimator tells."""
        problem, meta, inner, segment = self._situation(run)
        rng = generator(self.seed, "estimate", run)
        estimate = self.estimator.estimate(problem, meta, inner, segment, rng)
        told = {f"grad/{key}": leaf for key, leaf in estimate.grad.items()}
        return told | {"search_valid/loss": estimate.loss / len(segment.outer)} | estimate.metrics

    def _told(self) -> Metrics:
        """The geometric means of rates and of penalties."""
        logs = {key: leaf.detach() for key, leaf in self.meta.items()}
        penalties = [leaf.reshape(-1) for key, leaf in logs.items() if key.startswith("log_penalty/")]
        metrics = {"meta/penalty": torch.cat(penalties).mean().exp()} if penalties else {}
        rate = {"meta/learning_rate": logs["log_rate"].mean().exp()} if "log_rate" in logs else {}
        return rate | metrics


def training(context: Context, options: Any) -> NetworkTraining:
    """The problem of a context. Raises UserError for machine.compile."""
    if context.machine.options.compile:
        raise UserError(
            f"machine.compile: got true, {options.name} has no compiled form; set machine.compile=false"
        )
    return NetworkTraining(context.task, context.network, context.machine, options)


def _usable(estimator: HyperGradient | None, options: HyperparametersOptions) -> HyperGradient:
    """`estimator`, if it can answer. Raises UserError that says which one can."""
    name = f"hypergradient: got {'none' if estimator is None else name_of('hypergradient', estimator)}"
    if estimator is None:
        raise UserError(f"{name}; method hyperparameters needs one: choose hypergradient=unrolled")
    if isinstance(estimator, FirstOrder):
        raise UserError(
            f"{name}, which takes no inner step, so that no hyper-parameter would have a gradient; choose "
            "hypergradient=unrolled"
        )
    if isinstance(estimator, Pes):
        raise UserError(
            f"{name}, which is for runs longer than a segment; here a segment is the whole run: choose "
            "hypergradient=evolution or unrolled"
        )
    if isinstance(estimator, ConjugateGradient | Neumann) and options.learning_rates != "fixed":
        raise UserError(
            f"{name}, which is implicit: where an inner run ends depends on learning rates only by not being "
            f"converged; set method.learning_rates=fixed (got {options.learning_rates}), or "
            "hypergradient=unrolled"
        )
    if isinstance(estimator, ConjugateGradient | Neumann) and options.outer_every:
        raise UserError(
            f"{name}, which differentiates the end of a run alone; set method.outer_every=0 (got "
            f"{options.outer_every}), or hypergradient=unrolled"
        )
    if isinstance(estimator, FiniteDifference) and options.horizon != 1:
        raise UserError(
            f"{name}, which takes exactly one inner step; set method.horizon=1 (got {options.horizon}), or "
            "hypergradient=unrolled"
        )
    return estimator
