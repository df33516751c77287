"""The controls of learned optimizers: hand-written ones, their learning rates tuned over one grid."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.config import TunedOptimizersOptions
from metalearn.learned_optimizers.optimizees import family
from metalearn.learned_optimizers.rollout import MEASURES, rollout, summary, write_trajectories
from metalearn.learned_optimizers.rules import NAMES, HandRule
from metalearn.method import Context, Method
from metalearn.registry import UserError
from metalearn.task import Metrics, Split


class TunedOptimizers(Method):
    """Every optimizer with every learning rate on the validation problems; one step is one such pair.

    Each optimizer is then judged with the rate of the lowest final validation loss (Andrychowicz et al.
    2016, section 3), on the problems that a learned optimizer with the same `OptimizeeOptions` is given.
    """

    uses = ("mixture",)
    measures = (*MEASURES, "learning_rate", "edge_of_grid")

    def __init__(self, options: TunedOptimizersOptions, context: Context) -> None:
        check(options, context.steps)
        self.options, self.machine = options, context.machine
        self.family = family(options, context)
        self.learns_on = self.family.spec
        shape = (len(options.optimizers), len(options.learning_rates))
        self.final = torch.full(shape, torch.inf, device=context.machine.device)  # inf: diverged, or untried
        self.curves: dict[str, dict[str, Tensor]] = {}

    def step(self, index: int) -> Metrics:
        """Try one pair. A run that ends above its start counts as diverged and is reported at its start."""
        row, column = divmod(index, len(self.options.learning_rates))
        curve = self._rollout(self.options.optimizers[row], column, "valid").mean(1)
        self.final[row, column] = torch.where(curve[-1].isnan(), torch.inf, curve[-1])
        diverged = ~(curve[-1] <= curve[0])
        return {
            "train/final_loss": torch.where(diverged, curve[0], curve[-1]),
            "train/diverged": diverged.to(curve.dtype),
        }

    def best(self) -> dict[str, int]:
        """The place in the grid of each optimizer's best rate, of those that ended finite at any."""
        places, finite = self.final.argmin(1).tolist(), self.final.isfinite().any(1).tolist()
        named = zip(self.options.optimizers, places, finite, strict=True)
        return {name: place for name, place, usable in named if usable}

    def evaluate(self, split: Split) -> Metrics:
        """Each optimizer at its best rate, and the one of them with the lowest validation loss.

        `edge_of_grid` is 1 where the best rate is the smallest or the largest: the grid may be too narrow.
        """
        if not self.best():
            return {}
        metrics: Metrics = {}
        self.curves[split] = {name: self._rollout(name, place, split) for name, place in self.best().items()}
        for name, place in self.best().items():
            metrics |= {
                f"{key}/{name}": value for key, value in summary(split, self.curves[split][name]).items()
            }
            metrics[f"{split}/learning_rate/{name}"] = torch.tensor(self.options.learning_rates[place])
            metrics[f"{split}/edge_of_grid/{name}"] = torch.tensor(float(self._at_edge(place)))
        return summary(split, self.curves[split][self.winner()]) | metrics

    def winner(self) -> str:
        """The optimizer with the lowest final validation loss."""
        return self.options.optimizers[int(self.final.min(1).values.argmin())]

    def state_dict(self) -> dict[str, Any]:
        """The final validation losses so far, and which of them are finite: a state holds no infinity."""
        return {"final": self.final.nan_to_num(posinf=0.0), "usable": self.final.isfinite()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        final, usable = self.machine.put(state["final"]), self.machine.put(state["usable"])
        self.final = torch.where(usable, final, torch.inf)
        self.curves = {}

    def artifacts(self, folder: Path) -> None:
        """The curves last evaluated, and `tuning.json` with the whole grid; null where a run diverged."""
        if not self.best():
            return
        split = "test" if "test" in self.curves else "valid"
        if split not in self.curves:
            self.evaluate("valid")
        write_trajectories(folder, self.curves[split])
        grid = [[x if x < torch.inf else None for x in row] for row in self.final.tolist()]
        rates = self.options.learning_rates
        record = {
            "learning_rates": rates,
            "final_validation_loss": dict(zip(self.options.optimizers, grid, strict=True)),
            "best": {name: rates[place] for name, place in self.best().items()},
            "edge_of_grid": [name for name, place in self.best().items() if self._at_edge(place)],
            "winner": self.winner(),
            "budget": self._budget(),
            "options": dataclasses.asdict(self.options),
            "task": self.family.spec.name,
            "coordinates": self.family.coordinates,
        }
        (folder / "tuning.json").write_text(json.dumps(record, indent=1) + "\n")

    def _budget(self) -> dict[str, int]:
        """What tuning costs: rollouts, each of all validation problems, and steps of one problem in all."""
        rollouts = self.final.numel()
        steps = rollouts * self.options.valid_problems * self.options.horizon
        return {"rollouts": rollouts, "optimizee_steps": steps}

    def _at_edge(self, place: int) -> bool:
        return place in (0, len(self.options.learning_rates) - 1)

    def _rollout(self, name: str, place: int, split: Split) -> Float[Tensor, "points problems"]:
        rule = HandRule(name, self.options.learning_rates[place], self.options)
        with self.machine.autocast():
            return rollout(rule, {}, self.family, split)


def check(options: TunedOptimizersOptions, steps: int) -> None:
    """Raises UserError for an unknown optimizer, a grid that is no grid, or steps that do not cover it."""
    unknown = sorted(set(options.optimizers) - set(NAMES))
    if unknown or not options.optimizers:
        raise UserError(
            f"method.optimizers: got {options.optimizers}, must be one or more of: {', '.join(NAMES)}"
        )
    rates = options.learning_rates
    if not rates or min(rates) <= 0 or rates != sorted(set(rates)):
        raise UserError(f"method.learning_rates: got {rates}, must be positive and ascending")
    if len(options.betas) != 2 or not all(0 <= beta < 1 for beta in options.betas):
        raise UserError(f"method.betas: got {options.betas}, must be two numbers from 0 up to but not 1")
    pairs = len(options.optimizers) * len(rates)
    if steps != pairs:
        raise UserError(
            f"train.steps: got {steps}, must be {pairs}, one for each pair of method.optimizers and "
            f"method.learning_rates; set train.steps={pairs}"
        )
