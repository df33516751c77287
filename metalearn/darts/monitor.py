"""Watches a search for collapse: measures it, keeps what it found, and says what follows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from metalearn.darts.config import DartsOptions
from metalearn.darts.history import History
from metalearn.darts.measure import Measure
from metalearn.darts.problem import ArchitectureProblem
from metalearn.darts.regularisation import Regularisation
from metalearn.darts.space import SearchSpace
from metalearn.darts.stopping import Rise, rise
from metalearn.rng import generator
from metalearn.task import Metrics
from metalearn.tree import Tree

Place = dict[str, Any]  # what a search goes back to: a part of its state_dict, "alpha" at least


class Moment(NamedTuple):
    """Where a search stands when it is looked at."""

    steps: int  # taken
    problem: ArchitectureProblem
    alpha: Tree
    params: Tree
    strengths: Tree  # on the host
    moving: bool  # alpha; False in a warm-up
    place: Callable[[], Place]  # copies all that going back needs


class Verdict(NamedTuple):
    """What follows from a measurement."""

    back: Place | None = None  # take this up again
    ended: str = ""  # why the search ends; empty: it goes on


class Monitor:
    """Measures every `monitor.every` steps; the latest values stay in the metrics of each step.

    Where the dominant eigenvalue rises (`stopping.rise`), `stopping.kind=eigenvalue` ends the search with
    alpha as it was `window` measurements before; the weights stay the last ones. Adaptive weight decay (Zela
    et al. 2020, section 5.2 and src/search/train_search.py: DARTS-ADA) goes back there instead, with weights,
    momenta and alpha's optimizer, and multiplies the weight decay by `factor` up to its largest value; only
    then does the stopping rule count. Unlike the authors' code, which repeats the epochs it went back by, the
    steps, their batches and the learning rate go on; and the windows fill anew with measurements after the
    return. So that a way back exists, the state holds the places of the last `window` + 1 measurements, each
    as large as weights and momenta: adaptive weight decay alone pays for that.
    """

    def __init__(self, options: DartsOptions, network: SearchSpace, seed: int) -> None:
        self.options, self.network, self.seed = options, network, seed
        self.history, self.regularisation = History(), Regularisation(options)
        self.counted = 0  # measurements before this one say nothing to the rules
        self.places: list[Place] = []  # of the last measurements that count

    def due(self, steps: int) -> bool:
        """Whether to measure after so many steps."""
        return self.options.monitor.every > 0 and steps % self.options.monitor.every == 0

    def restart(self) -> None:
        """The rules forget what was measured so far: the search is another one from here on."""
        self.counted, self.places = len(self.history.steps), []

    def metrics(self) -> Metrics:
        """The latest values."""
        latest = self.history.values[-1] if self.history.values else {}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in latest.items()}

    def look(self, moment: Moment) -> Verdict:
        """Measure, and judge by the rules; while alpha does not move, measurements count for none."""
        genotype = self.network.discretise(moment.strengths)
        measure = Measure(self.options.monitor, moment.problem, moment.params)
        found = measure.gap(moment.alpha, genotype)
        if self.options.monitor.eigenvalue != "none":
            found |= measure.eigenvalue(moment.alpha, generator(self.seed, "monitor", moment.steps))
        # rules decide on the host
        values = {name: float(value) for name, value in found.items()}
        values |= {f"genotype/skips_{kind}": float(count) for kind, count in genotype.skips().items()}
        self.history.add(moment.steps, values, moment.alpha, moment.strengths)
        if not moment.moving:
            self.restart()
            return Verdict()
        if self.regularisation.adaptive:
            self.places = [*self.places, moment.place()][-self.options.stopping.window - 1 :]
        return self._judge()

    def _judge(self) -> Verdict:
        stopping, steps = self.options.stopping, self.history.steps[-1]
        if stopping.kind == "skips":
            skips = self.history.values[-1]["genotype/skips_normal"]
            if skips >= stopping.skips:
                return Verdict(ended=f"the normal cell has {skips:.0f} skip connections at step {steps}")
        if stopping.kind != "eigenvalue" and not self.regularisation.adaptive:
            return Verdict()
        eigenvalues = [row["monitor/eigenvalue"] for row in self.history.values[self.counted :]]
        risen = rise(eigenvalues, stopping.window, stopping.ratio)
        return self._answer(risen) if risen else Verdict()

    def _answer(self, risen: Rise) -> Verdict:
        """More weight decay, if there may be more; else the end, if the rule is to end it."""
        window, history = self.options.stopping.window, self.history
        if self.regularisation.can_rise():
            self.regularisation.raised += 1
            back = self.places[0]
            self.restart()
            return Verdict(back=back)
        if self.options.stopping.kind != "eigenvalue":
            return Verdict()
        return Verdict(
            back={"alpha": history.alpha[-1 - window]},
            ended=f"the dominant eigenvalue rose from {risen.older:.4g} to {risen.newer:.4g} (means over "
            f"{window} measurements) at step {history.steps[-1]}; alpha is that of step "
            f"{history.steps[-1 - window]}",
        )

    def state_dict(self) -> dict[str, Any]:
        """The history, how often weight decay was raised, and the places to go back to."""
        return {
            "history": self.history.state_dict(),
            "raised": self.regularisation.raised,
            "counted": self.counted,
            "places": list(self.places),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.history.load_state_dict(state["history"])
        self.regularisation.raised, self.counted = state["raised"], state["counted"]
        self.places = list(state["places"])
