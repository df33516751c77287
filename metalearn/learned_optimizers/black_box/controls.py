"""The controls of black-box optimizers: random search, libraries, and one that knows the true prior."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.black_box.config import BlackBoxControlsOptions
from metalearn.learned_optimizers.black_box.functions import queried, single
from metalearn.learned_optimizers.black_box.proposals import make_proposer
from metalearn.learned_optimizers.black_box.score import Scores, write_scores
from metalearn.method import Context, Method
from metalearn.registry import UserError
from metalearn.task import Metrics, Predicted, Queried, Split
from metalearn.tree import Tree

SERIES = {
    "random": "random search",
    "gp": "Gaussian process (optuna)",
    "tpe": "TPE (optuna)",
    "gp_true": "expected improvement, true prior",
}


class BlackBoxControls(Method):
    """Every optimizer on the functions that a black-box optimizer is tested on; one step is one function.

    They have nothing to learn and nothing is chosen by validation functions, so that those are left alone.
    """

    def __init__(self, options: BlackBoxControlsOptions, context: Context) -> None:
        self.functions = queried(context.task, options)
        _check(options, self.functions, context)
        self.options, self.task, self.seed = options, context.task, context.seed
        self.machine = context.machine
        shape = (len(options.optimizers), options.horizon, options.test_functions)
        self.values = torch.zeros(shape, dtype=torch.float64)
        self.seconds = torch.zeros(shape[0], dtype=torch.float64)  # of all functions so far, without them
        self.done = 0

    def step(self, index: int) -> Metrics:
        """All optimizers on test function number `index`."""
        metrics: Metrics = {}
        for row, name in enumerate(self.options.optimizers):
            values, seconds = self.searched(name, index)
            self.values[row, :, index] = values
            self.seconds[row] += seconds
            metrics[f"train/best_value/{name}"] = values.min()
        self.done = index + 1
        return metrics

    def searched(self, name: str, number: int) -> tuple[Float[Tensor, " time"], float]:
        """The values that an optimizer sees on a test function, and the seconds that its proposals took."""
        state, values, seconds = self.functions.begin(single(self.task, "test", number)), [], 0.0
        key = (self.seed, "black_box_controls", name, number)
        start = time.perf_counter()
        proposer = make_proposer(name, self.options, self.functions, self.task.spec.outputs, key)
        for _ in range(self.options.horizon):
            point = proposer.ask(state)
            seconds += time.perf_counter() - start
            value, state = self._answer(point, state)
            values.append(float(value))  # what is outside knows numbers
            start = time.perf_counter()
            proposer.tell(values[-1])
        return torch.tensor(values, dtype=torch.float64), seconds

    def evaluate(self, split: Split) -> Metrics:
        """The best values on the test functions so far, of each optimizer and of the best one."""
        if split != "test" or not self.done:
            return {}
        metrics: Metrics = {}
        for name, scores in self.scores().items():
            metrics |= scores.metrics(split, name)
        return self.scores()[self.winner()].metrics(split) | metrics

    def scores(self) -> dict[str, Scores]:
        """Of each optimizer, on the functions that are done."""
        named = zip(self.options.optimizers, self.values[:, :, : self.done], strict=True)
        return {name: Scores.of(values) for name, values in named}

    def winner(self) -> str:
        """The optimizer with the lowest mean best value."""
        return min(self.scores().items(), key=lambda pair: float(pair[1].mean[-1]))[0]

    def state_dict(self) -> dict[str, Any]:
        """All values so far."""
        return {"values": self.values, "seconds": self.seconds, "done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.values, self.seconds, self.done = state["values"].cpu(), state["seconds"].cpu(), state["done"]

    def artifacts(self, folder: Path) -> None:
        """`trajectories.json`, and `summary.json` with the seconds that 100 queries take (table 1)."""
        if not self.done:
            return
        write_scores(folder, {SERIES[name]: scores for name, scores in self.scores().items()})
        per_hundred = 100 * self.seconds / (self.done * self.options.horizon)
        named = dict(zip(self.options.optimizers, per_hundred.tolist(), strict=True))
        summary = {"functions": self.done, "seconds_per_100_queries": named}
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    def _answer(self, point: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        with torch.no_grad():
            return self.functions.query(state, self.machine.put(point))


def _check(options: BlackBoxControlsOptions, functions: Queried, context: Context) -> None:
    """Raises UserError for no optimizers, an unknown prior, or steps that do not cover the functions."""
    if not options.optimizers or len(set(options.optimizers)) < len(options.optimizers):
        raise UserError(
            f"method.optimizers: got {options.optimizers}, must be different ones of: {', '.join(SERIES)}"
        )
    if "gp_true" in options.optimizers and not isinstance(functions, Predicted):
        raise UserError(
            f"method.optimizers: got gp_true, which needs the distribution that functions of task "
            f"{context.task.spec.name} are drawn from; leave it out, or choose task=gaussian_process"
        )
    if context.steps != options.test_functions:
        raise UserError(
            f"train.steps: got {context.steps}, must be {options.test_functions}, one for each of "
            f"method.test_functions; set train.steps={options.test_functions}"
        )
