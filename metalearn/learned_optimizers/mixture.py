"""Another task and another network for each run, drawn from a mixture."""

import bisect
import copy
import dataclasses
import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import HydraException
from jaxtyping import Float
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from metalearn import registry
from metalearn.compose import recompose
from metalearn.config import checked
from metalearn.learned_optimizers import distributions
from metalearn.learned_optimizers.config import MemberOptions, MixtureOptions, OptimizeeOptions
from metalearn.learned_optimizers.optimizees import KEPT_BYTES, Family, Optimizee
from metalearn.method import Builder, Context
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec

GROUPS = ("task", "network")  # what a member is made of
OWN = ("batch", "deviation")  # what is drawn beside options: examples of a minibatch, deviation of the start
KEPT_RUNS = 64  # a run is drawn again at each of its steps


class Mixture(Family):
    """Members by weight; a draw is a function of (seed, split, number of the run) alone.

    Evaluation takes `together` problems of each of as many fixed draws as make up the problems asked for.
    """

    def __init__(self, options: MixtureOptions, optimizee: OptimizeeOptions, context: Context) -> None:
        self.options, self.optimizee, self.context = options, optimizee, context
        self.members = [Member(name, values, context) for name, values in options.members.items()]
        if not self.members:
            raise UserError("mixture.members: got none; name one or more, as conf/mixture/mixture.yaml does")
        self.bounds = list(itertools.accumulate(member.options.weight for member in self.members))
        self.spec = _together(options.title, [member.task.spec for member in self.members])
        self._recent: OrderedDict[tuple[Split, int], Optimizee] = OrderedDict()
        self._evaluated: dict[Split, list[tuple[Optimizee, int]]] = {}
        for member in self.members:  # mistakes show before anything has trained
            member.draw(lambda: 0.0, optimizee, 0)
            member.draw(lambda: math.nextafter(1.0, 0.0), optimizee, 0)

    def draw(self, split: Split, run: int) -> Optimizee:
        """The problem of a run of meta-training."""
        found = self._recent.pop((split, run), None) or self._drawn(split, run, 0)
        self._recent[split, run] = found
        if len(self._recent) > KEPT_RUNS:
            self._recent.popitem(last=False)
        return found

    def evaluation(self, split: Split) -> list[tuple[Optimizee, int]]:
        """Fixed draws, the last with fewer problems where their number asks for it."""
        if split not in self._evaluated:
            options, together = self.optimizee, self.options.together
            count = options.test_problems if split == "test" else options.valid_problems
            firsts = range(0, count, together)
            drawn = [self._drawn(split, run, first) for run, first in enumerate(firsts)]
            for optimizee in drawn:
                optimizee.kept_bytes = KEPT_BYTES // len(drawn)
            counts = [min(together, count - first) for first in firsts]
            self._evaluated[split] = list(zip(drawn, counts, strict=True))
        return self._evaluated[split]

    def _drawn(self, split: Split, run: int, first: int) -> Optimizee:
        rng = generator(self.context.seed, "mixture", split, run)

        def share() -> float:
            return float(torch.rand((), generator=rng, dtype=torch.float64))

        below = bisect.bisect(self.bounds, share() * self.bounds[-1])
        return self.members[below].draw(share, self.optimizee, first)


class Member:
    """One kind of problem. Its task is built once, or for each draw where options of the task are drawn.

    Raises UserError that names it and the option.
    """

    def __init__(self, name: str, values: Any, context: Context) -> None:
        self.name, self.key, self.context = name, f"mixture.members.{name}", context
        if not isinstance(values, dict):
            raise UserError(f"{self.key}: got {values!r}, must be a group with weight, overrides and draw")
        self.options: MemberOptions = checked(MemberOptions, values, f"{self.key}.")
        self.draws = distributions.flatten(self.options.draw)
        self.base = self._composed()
        for key, distribution in self.draws.items():
            self._check_key(key)
            distributions.check(distribution, f"{self.key}.draw.{key}")
        self.fixed_task = not any(key.startswith("task.") for key in self.draws)
        with self._named():
            self.task = self._built(self.base["task"])
        if not self.fixed_task and self.task.spec.kind != "function":
            raise UserError(
                f"{self.key}.draw: options of task {self.task.spec.name} cannot be drawn, for its data would "
                "be read anew each time; draw batch (examples of a minibatch), or give overrides"
            )

    @property
    def build(self) -> Builder:
        """What tasks and networks are built by."""
        assert self.context.build is not None
        return self.context.build

    def draw(self, share: Callable[[], float], optimizee: OptimizeeOptions, first: int) -> Optimizee:
        """A problem whose options are drawn by `share`, as `distributions.draw` takes it."""
        values, own = copy.deepcopy(self.base), {}
        for key, distribution in self.draws.items():
            drawn = distributions.draw(distribution, share)
            if key in OWN:
                own[key] = drawn
            else:
                _put(values, key.split("."), drawn)
        with self._named():
            return self._optimizee(values, own, optimizee, first)

    def _optimizee(
        self, values: dict[str, Any], own: dict[str, Any], optimizee: OptimizeeOptions, first: int
    ) -> Optimizee:
        task = self.task if self.fixed_task else self._built(values["task"])
        if "batch" in own:
            task = FirstExamples(task, own["batch"])
        network = self.build.network(self._options("network", values["network"]), task.spec)
        options = dataclasses.replace(optimizee, deviation=own.get("deviation", optimizee.deviation))
        return Optimizee(options, task, network, self.context, first)

    def _composed(self) -> dict[str, Any]:
        """Task and network by the member's overrides, not yet checked."""
        for override in self.options.overrides:
            group = override.lstrip("+~").partition("=")[0].partition(".")[0]
            if group not in GROUPS:
                raise UserError(f"{self.key}.overrides: got {override!r}, must be of task or network")
        try:
            composed = OmegaConf.to_container(recompose(self.options.overrides), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{self.key}.overrides: {str(error).splitlines()[0]}") from None
        assert isinstance(composed, dict)
        return {group: composed[group] for group in GROUPS}

    def _check_key(self, key: str) -> None:
        group, _, option = key.partition(".")
        if key not in OWN and (group not in GROUPS or option.partition(".")[0] not in self.base[group]):
            allowed = [*OWN, *(f"{group}.{name}" for group in GROUPS for name in self.base[group])]
            closest = ", ".join(registry.closest(key, allowed))
            raise UserError(f"{self.key}.draw.{key}: no such option; choose one of: {closest}")

    def _built(self, values: dict[str, Any]) -> Task:
        return self.build.task(self._options("task", values))

    def _options(self, group: str, values: dict[str, Any]) -> Any:
        return checked(registry.entry(group, values["name"]).options, values, f"{group}.")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A block whose mistakes are the member's."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from None


class FirstExamples(Task):
    """The first `count` of each of a task's minibatches, or of its batches of functions."""

    def __init__(self, task: Task, count: int) -> None:
        self.task, self.count, self.spec = task, count, task.spec
        most = len(task.batch("train", 0).x)
        if not isinstance(count, int) or not 1 <= count <= most:
            raise UserError(f"batch: got {count}, must be a whole number from 1 to task.batch, {most}")

    def batch(self, split: Split, index: int) -> Batch:
        whole = self.task.batch(split, index)
        return Batch(whole.x[: self.count], whole.y[: self.count], whole.key)

    def batches(self, split: Split) -> int:
        return self.task.batches(split)

    def sweep(self, split: Split) -> Iterator[Batch]:
        return self.task.sweep(split)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return self.task.loss(output, batch)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return self.task.metrics(output, batch)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def _together(title: str, specs: list[TaskSpec]) -> TaskSpec:
    """What a run on all of these tasks tells of where its data came from."""

    def each(texts: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(texts))

    return TaskSpec(
        name=f"mixture {title}",
        kind="mixture",
        input_shape=(),
        outputs=0,
        sizes={},
        metric="loss",
        source=each(f"{spec.name}: {spec.source}" for spec in specs),
        licence=each(spec.licence for spec in specs),
        provenance=each(spec.provenance for spec in specs),
        digest=hashlib.sha256("".join(spec.digest for spec in specs).encode()).hexdigest(),
        comparable=all(spec.comparable for spec in specs),
    )
