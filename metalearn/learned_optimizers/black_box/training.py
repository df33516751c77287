"""Training a black-box optimizer by backpropagation through its whole trajectories."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.learned_optimizers.black_box import stored
from metalearn.learned_optimizers.black_box.config import BlackBoxOptimizerOptions
from metalearn.learned_optimizers.black_box.functions import fresh, queried
from metalearn.learned_optimizers.black_box.losses import trajectory_loss
from metalearn.learned_optimizers.black_box.score import Scores, write_scores
from metalearn.learned_optimizers.black_box.search import Search, make_controller
from metalearn.method import Context, Method
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Metrics, Predicted, Queried, Split
from metalearn.tree import clip_norm, count, detach, gradient, norm, require_grad

TIMED = 100  # queries, as in table 1 of the paper


class BlackBoxOptimizer(Method):
    """Adam on a controller's weights; one step is one batch of fresh functions, each searched from the start.

    The gradient is that of the whole trajectory: the functions are differentiated, at training alone (Chen et
    al. 2017, section 2.1), so that there is no hypergradient to choose. The trajectories grow from
    `first_horizon` to `horizon` queries over the first `full_horizon_after` steps. With `optimizer` nothing
    is learned: a step says what the stored network's loss is.
    """

    measures = ("best_value", "best_value_interval", "mean_best_value")

    def __init__(self, options: BlackBoxOptimizerOptions, context: Context) -> None:
        functions = queried(context.task, options)
        _check(options, functions, context)
        self.options, self.task, self.machine = options, context.task, context.machine
        controller = make_controller(options, context.task.spec.outputs)
        self.search = Search(options, functions, controller, context.machine)
        meta = controller.init(generator(context.seed, "black_box_optimizer"))
        if options.optimizer is not None:
            meta = stored.read(options.optimizer, options, context.task.spec.outputs)
        self.meta = require_grad({key: context.machine.put(leaf) for key, leaf in meta.items()})
        self.optimizer = torch.optim.Adam(self.meta.values(), options.learning_rate)
        self.scores: dict[Split, Scores] = {}

    @property
    def series(self) -> str:
        """What its curve is called."""
        name = {"lstm": "LSTM", "dnc": "DNC"}[self.options.controller]
        return f"{name}, {self.options.loss} loss"

    def step(self, index: int) -> Metrics:
        """One step of Adam on the loss of one batch of trajectories."""
        loss, values = self.loss(index)
        metrics = {"train/loss": loss.detach(), "train/best_value": values.detach().amin(0).mean()}
        if self.options.optimizer is not None:
            return metrics
        grads = gradient(loss, self.meta)
        metrics["train/gradient_norm"] = norm(grads)
        if self.options.clip is not None:
            grads = clip_norm(grads, self.options.clip)
        for key, leaf in self.meta.items():
            leaf.grad = grads[key]
        self.optimizer.step()
        return metrics

    def loss(self, index: int) -> tuple[Tensor, Tensor]:
        """The loss of training batch `index` under the weights as they are, and the values it saw."""
        options, batch = self.options, self.task.batch("train", index)
        with self.machine.autocast():
            seen = self.search.run(self.meta, batch, self.horizon(index), expected=options.loss == "ei")
        loss = trajectory_loss(options.loss, seen.values, seen.improvements, options.detach_incumbent)
        return loss, seen.values

    def horizon(self, index: int) -> int:
        """Queries of a function at a training step."""
        options = self.options
        if index >= options.full_horizon_after or options.optimizer is not None:
            return options.horizon
        grown = (options.horizon - options.first_horizon) * index / options.full_horizon_after
        return options.first_horizon + int(grown)

    def evaluate(self, split: Split) -> Metrics:
        """The best value on the first functions of a split, which are always the same."""
        self.scores[split] = self.searched(split)
        return self.scores[split].metrics(split)

    def searched(self, split: Split) -> Scores:
        """All queries of all functions of a split."""
        options, meta, values = self.options, detach(self.meta), []
        wanted = options.test_functions if split == "test" else options.valid_functions
        with torch.no_grad(), self.machine.autocast():
            for batch in fresh(self.task, split, wanted):
                values.append(self.search.run(meta, batch, options.horizon).values)
        return Scores.of(torch.cat(values, 1))

    def state_dict(self) -> dict[str, Any]:
        """Weights and Adam's moments."""
        return {"meta": detach(self.meta), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        with torch.no_grad():
            for key, leaf in self.meta.items():
                leaf.copy_(state["meta"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scores = {}

    def artifacts(self, folder: Path) -> None:
        """The network, `trajectories.json` and `summary.json` with the seconds that 100 queries take."""
        spec = self.task.spec
        stored.write(folder, self.meta, self.options, spec.outputs, spec.name)
        split: Split = "test" if "test" in self.scores else "valid"
        if split not in self.scores:
            self.evaluate(split)
        write_scores(folder, {self.series: self.scores[split]})
        summary = {"parameters": count(self.meta), "seconds_per_100_queries": self.seconds()}
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    def seconds(self) -> float:
        """What 100 queries of one function take, without the function (table 1)."""
        meta, controller = detach(self.meta), self.search.controller
        like = next(iter(meta.values()))
        state, features = controller.state(1, like), like.new_zeros(1, controller.inputs)
        with torch.no_grad(), self.machine.autocast():
            self.search.step(meta, features, state)
            start = time.perf_counter()
            for _ in range(TIMED):
                output, state = self.search.step(meta, features, state)
                self.search.squash(output).tolist()  # a query leaves the device: the function is outside
        return time.perf_counter() - start


def _check(options: BlackBoxOptimizerOptions, functions: Queried, context: Context) -> None:
    """Raises UserError for options that contradict each other, the task or the run."""
    if context.hypergradient is not None:
        raise UserError(
            f"black_box_optimizer: got hypergradient {type(context.hypergradient).__name__}, but it descends "
            "the plain gradient of its trajectories; set hypergradient=none"
        )
    if options.loss == "ei" and not isinstance(functions, Predicted):
        raise UserError(
            f"method.loss: got ei, which needs the distribution that functions of task "
            f"{context.task.spec.name} are drawn from; choose oi or sum, or task=gaussian_process"
        )
    for name in ("first_horizon", "workers"):
        if getattr(options, name) > options.horizon:
            raise UserError(
                f"method.{name}: got {getattr(options, name)}, must be at most method.horizon, "
                f"{options.horizon}"
            )
    if options.optimizer is not None and context.steps != 1:
        raise UserError(
            f"train.steps: got {context.steps}, but with method.optimizer nothing is learned; set "
            "train.steps=1"
        )
