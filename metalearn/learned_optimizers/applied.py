"""A trained optimizer at work, frozen, beside tuned ones on the same problems."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.learned_optimizers import budget, controls, stored
from metalearn.learned_optimizers.config import AppliedOptimizerOptions
from metalearn.learned_optimizers.controls import Controls
from metalearn.learned_optimizers.images import write_images
from metalearn.learned_optimizers.optimizees import Family, family
from metalearn.learned_optimizers.rollout import MEASURES, rollout, summary, write_trajectories
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.learned_optimizers.score import SCORES, score
from metalearn.method import Context, Method
from metalearn.registry import UserError
from metalearn.task import Metrics, Split
from metalearn.tree import Tree, count

SERIES = "learned optimizer"
BEST = "best"  # of the controls: the one with the lowest validation loss
WITH_BEST = ("final_ratio", "speed_up")  # what the score against it keeps


class AppliedOptimizer(Method):
    """Loss curves and score of a trained optimizer. Nothing moves: one step, on the validation problems.

    The controls come with the rates that another run has tuned on validation problems, and are run here on
    the problems that the trained optimizer is given.
    """

    uses = ("mixture",)
    measures = (*MEASURES, *SCORES)  # the scores only beside controls

    def __init__(self, options: AppliedOptimizerOptions, context: Context) -> None:
        if options.window > options.horizon:
            raise UserError(
                f"method.window: got {options.window}, must be at most method.horizon, {options.horizon}"
            )
        self.options, self.machine, self.seed = options, context.machine, context.seed
        self.family = family(options, context)
        self.learns_on = self.family.spec
        self.rule, self.meta = stored.load(options.optimizer, context.machine)
        self.controls = _controls(options, self.family)
        self.curves: dict[Split, dict[str, Tensor]] = {}

    def step(self, index: int) -> Metrics:  # noqa: ARG002
        """What the validation problems come to."""
        found = self.evaluate("valid")
        return {f"train/{key}": found[f"valid/{key}"] for key in ("final_loss", "diverged")}

    def evaluate(self, split: Split) -> Metrics:
        """The trained optimizer's `summary` and score, and the controls' `summary/NAME`.

        `final_loss/best`, `final_ratio/best` and `speed_up/best`: of the control that did best in tuning.
        """
        ours = self._curves(split)[SERIES]
        metrics = summary(split, ours)
        if self.controls is None:
            return metrics
        for name in self.controls.rules:
            found = summary(split, self._curves(split)[name])
            metrics |= {f"{key}/{name}": value for key, value in found.items()}
        metrics[f"{split}/final_loss/{BEST}"] = metrics[f"{split}/final_loss/{self.controls.winner}"]
        best = self._score(split, self.controls.winner)
        metrics |= {f"{split}/{key}/{BEST}": best[key] for key in WITH_BEST}
        against = self._score(split, self.options.reference)
        return metrics | {f"{split}/{key}": value for key, value in against.items()}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: all is given by the options."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take up."""

    def artifacts(self, folder: Path) -> None:
        """`trajectories.json`, `score.json`, and `summary.json` with the optimizer's own size."""
        split = "test" if "test" in self.curves else "valid"
        found = self.evaluate(split)
        write_trajectories(folder, self.curves[split])
        (folder / "summary.json").write_text(json.dumps({"parameters": count(self.meta)}) + "\n")
        record = {
            "split": split,
            "seed": self.seed,
            "task": self.family.spec.name,
            "horizon": self.options.horizon,
            "problems": len(self.curves[split][SERIES][0]),
            "optimizer": self.options.optimizer,
            "reference": self.options.reference,
            "metrics": {key.partition("/")[2]: float(value) for key, value in found.items()},
            "rates": {name: rule.learning_rate for name, rule in self._rules().items()},
            "winner": self.controls.winner if self.controls else None,
            "edge_of_grid": self.controls.at_edge if self.controls else [],
            "budget": {
                "tuning": self.controls.budget if self.controls else None,
                "meta_training": budget.of_meta_training(self.options.optimizer),
            },
        }
        (folder / "score.json").write_text(json.dumps(record, indent=1) + "\n")
        self._write_images(folder, split)

    def _write_images(self, folder: Path, split: Split) -> None:
        """`images.svg` where the task is one of images, with the best of the controls."""
        shown: dict[str, tuple[UpdateRule, Tree]] = {SERIES: (self.rule, self.meta)}
        if self.controls is not None:
            shown[self.controls.winner] = self.controls.rules[self.controls.winner], {}
        write_images(folder, shown, self.family.evaluation(split)[0][0], split)

    def _rules(self) -> dict[str, Any]:
        return self.controls.rules if self.controls else {}

    def _curves(self, split: Split) -> dict[str, Tensor]:
        """Of all optimizers on a split, which never change: they are run once."""
        if split not in self.curves:
            with self.machine.autocast():
                curves = {SERIES: rollout(self.rule, self.meta, self.family, split)}
                for name, rule in self._rules().items():
                    curves[name] = rollout(rule, {}, self.family, split)
            self.curves[split] = curves
        return self.curves[split]

    def _score(self, split: Split, name: str) -> dict[str, Tensor]:
        curves = self._curves(split)
        return score(curves[SERIES], curves[name], self.options.window)


def _controls(options: AppliedOptimizerOptions, family: Family) -> Controls | None:
    """The tuned controls, with the reference among them. Raises UserError."""
    if options.controls is None:
        return None
    found = controls.read(options.controls, options, family)
    if options.reference not in found.rules:
        raise UserError(
            f"method.reference: got {options.reference!r}, must be an optimizer of {options.controls} that "
            f"did not diverge at every rate: {', '.join(found.rules)}"
        )
    return found
