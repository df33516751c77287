"""Hypergradients held against the exact one while a run goes on."""

import math

import torch

from metalearn import registry
from metalearn.build import Parts
from metalearn.config import Config
from metalearn.diagnose.accuracy import cosine, flat, ratio
from metalearn.diagnose.candidate import Candidate, exact
from metalearn.diagnose.config import estimator_options
from metalearn.diagnose.subject import bilevel
from metalearn.hypergradient.base import HyperGradient
from metalearn.method import Bilevel, Method
from metalearn.registry import UserError, closest
from metalearn.rng import generator, seeded
from metalearn.task import Metrics


class Probe:
    """`train.diagnose` at a state of the run. It draws from streams of its own and moves nothing."""

    def __init__(self, config: Config, parts: Parts) -> None:
        """Raises UserError for a method without hypergradient and an estimator that does not exist."""
        bilevel(parts)
        self.seed, self.machine = config.seed, parts.machine
        self.candidates = {name: Candidate(_built(config, name), parts.machine) for name in _names(config)}

    def __call__(self, method: Method, step: int) -> Metrics:
        """`diagnose/NAME/cosine` and `/relative_norm` of the coming step; what is not finite is left out.

        A zero exact gradient has cosine 0 and no relative norm. Raises UserError where an estimator does not
        fit the problem.
        """
        assert isinstance(method, Bilevel)
        found: dict[str, float] = {}
        with seeded(self.seed, "diagnose", step):
            group = method.situations(step)
            reference = flat(exact(group, self.machine))
            for name, candidate in self.candidates.items():
                grad = flat(candidate.estimate(group, generator(self.seed, "diagnose", name, step))[0])
                found[f"diagnose/{name}/cosine"] = cosine(grad, reference)
                found[f"diagnose/{name}/relative_norm"] = ratio(float(grad.norm()), float(reference.norm()))
        return {
            key: torch.tensor(value, dtype=torch.float64)
            for key, value in found.items()
            if math.isfinite(value)
        }


def _names(config: Config) -> list[str]:
    known = registry.names("hypergradient")
    for name in config.train.diagnose:
        if name not in known:
            raise UserError(
                f"train.diagnose: no hypergradient is called {name!r}; choose some of: "
                f"{', '.join(closest(name, known))}"
            )
    return config.train.diagnose


def _built(config: Config, name: str) -> HyperGradient:
    """The run's own estimator under its own options, others as conf/hypergradient has them."""
    own = config.hypergradient
    options = own if own is not None and own.name == name else estimator_options(config, name, {})
    return registry.build("hypergradient", options)
