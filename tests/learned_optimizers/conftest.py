"""Small tasks, and how the tests build what they test."""

import dataclasses
import io
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

import metalearn.learned_optimizers  # noqa: F401
from metalearn import registry
from metalearn.compose import CONF
from metalearn.config import MachineOptions, typed
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.hypergradient.unroll import Unrolled
from metalearn.learned_optimizers.config import (
    AugmentationOptions,
    HorizonOptions,
    ImitationOptions,
    LstmRuleOptions,
    MetaTrainingOptions,
    TunedOptimizersOptions,
    UpdatesOptions,
)
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.networks import Mlp, Point
from metalearn.options import MlpOptions, PointOptions
from metalearn.problem import Inner
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Task, TaskSpec


def _spec(name, kind, input_shape, outputs):
    return TaskSpec(name, kind, input_shape, outputs, {"train": 100}, "loss", "test", "none", "made", "0")


class Quadratics(Task):
    """||W theta - y||^2, all entries standard normal, `functions` of them a batch."""

    def __init__(self, functions: int = 4, dimension: int = 3) -> None:
        self.shape, self.spec = (functions, dimension), _spec("quadratics", "function", (), dimension)

    def batch(self, split, index):
        n, d = self.shape
        drawn = torch.randn(n, d, d + 1, generator=generator("quadratics", split, index))
        drawn = drawn.to(torch.get_default_dtype())
        return Batch(drawn[..., :d], drawn[..., d], (split, index))

    def batches(self, split):  # noqa: ARG002
        return 1

    def sweep(self, split):
        yield self.batch(split, 0)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        residual = torch.einsum("nij,nj->ni", batch.x, output) - batch.y
        return residual.square().sum(1).mean()

    def metrics(self, output, batch):
        return {"loss": self.loss(output, batch).detach()}


class Blobs(Task):
    """Three Gaussian clusters in four dimensions; minibatches of 16."""

    spec = _spec("blobs", "classification", (4,), 3)

    def batch(self, split, index):
        rng = generator("blobs", split, index)
        y = torch.randint(3, (16,), generator=rng)
        x = 2 * F.one_hot(y, 4) + torch.randn(16, 4, generator=rng)
        return Batch(x.to(torch.get_default_dtype()), y, (split, index))

    def batches(self, split):  # noqa: ARG002
        return 1

    def sweep(self, split):
        yield self.batch(split, 0)

    def loss(self, output, batch):
        return F.cross_entropy(output, batch.y)

    def metrics(self, output, batch):
        return {"loss": self.loss(output, batch).detach()}


RULE = LstmRuleOptions(
    name="lstm", layers=2, hidden=20, preprocess="log_sign", log_sign_p=10.0, output_scale=0.1,
    forget_bias=1.0, initial="truncated_normal", averaging=0, groups="single",
)  # fmt: skip
LEARNED = MetaTrainingOptions(
    name="learned_optimizer", horizon=6, deviation=0.5, function_gradients="own", valid_problems=2,
    test_problems=2, problems=1, groups=1, unroll=3, count_last=False, second_derivatives=False,
    learning_rate=0.01, clip=None, objective="all", score="loss", particles="one_by_one",
    horizons=HorizonOptions("fixed", 3, "none", 3, 4, stagger=False),
    augmentation=AugmentationOptions(0.0, "coordinate", 0.0),
    imitation=ImitationOptions(0, 0.01, [0.9, 0.999], 1e-8),
    updates=UpdatesOptions(0, 9, None, 0.1, 0.03, [0.9, 0.999], 1e-8),
)  # fmt: skip
TUNED = TunedOptimizersOptions(
    name="tuned_optimizers", horizon=6, deviation=0.5, function_gradients="own", valid_problems=2,
    test_problems=2, optimizers=["sgd", "momentum", "nag", "rmsprop", "adam"],
    learning_rates=[0.01, 0.1, 1.0], momentum=0.9, betas=[0.9, 0.999], alpha=0.99, epsilon=1e-8,
    weight_decay=0.01, momentum_decay=0.004,
)  # fmt: skip


def learned(**changes) -> MetaTrainingOptions:
    return dataclasses.replace(LEARNED, **changes)


def rule(**changes) -> LstmRuleOptions:
    return dataclasses.replace(RULE, **changes)


def tuned(**changes) -> TunedOptimizersOptions:
    return dataclasses.replace(TUNED, **changes)


def context(task: Task, steps: int = 10, seed: int = 0) -> Context:
    machine = Machine(
        MachineOptions(
            "cpu", "cpu", "fp32", compile=False, fused=True, deterministic=False, threads=1, timeout=60
        )
    )

    def network():
        with seeded(seed, "network"):
            if task.spec.kind == "function":
                return Point(PointOptions("point", 0.0), task.spec).to(torch.get_default_dtype())
            mlp = Mlp(MlpOptions("mlp", [5], "sigmoid", None), task.spec)
            return mlp.to(torch.get_default_dtype())

    estimator = Unrolled(UnrolledOptions("unrolled", False))
    return Context(task, network, estimator, machine, seed, steps, rule=RULE)


def learner(task: Task, estimator: str | None = None, settings=None, **changes) -> MetaTraining:
    """Meta-training of the LSTM on a task; options of the method, or else of the rule, by their names."""
    ours = {key: changes.pop(key) for key in [*changes] if hasattr(RULE, key) and not hasattr(LEARNED, key)}
    found = context(task) if estimator is None else with_estimator(task, estimator, **(settings or {}))
    return MetaTraining(learned(**changes), found._replace(rule=rule(**ours)))


def optimizee(options, context: Context) -> Optimizee:
    return Optimizee(options, context.task, context.network(), context)


def with_estimator(task: Task, name: str, **settings) -> Context:
    """A context whose estimator is that of conf/, but for `settings`."""
    chosen = typed(
        registry.entry("hypergradient", name).options,
        OmegaConf.to_container(OmegaConf.load(CONF / "hypergradient" / f"{name}.yaml")) | settings,
        "hypergradient.",
    )
    return context(task)._replace(hypergradient=registry.build("hypergradient", chosen))


def saved(state):
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def build_rule(name: str, **changes):
    """A rule of the group with the options of conf/, but for `changes`."""
    stored = OmegaConf.to_container(OmegaConf.load(CONF / "rule" / f"{name}.yaml"))
    options = typed(registry.entry("rule", name).options, stored | changes, "rule.")
    return registry.build("rule", options, machine=context(Blobs()).machine)


def moved(rule, dtype=torch.float64):
    """Fresh meta-parameters, moved off the zeros that some of them begin with."""
    rng, fresh = generator("moved"), rule.init(generator("weights"))
    return {
        key: (leaf + 0.1 * torch.randn(leaf.shape, generator=rng)).to(dtype) for key, leaf in fresh.items()
    }


def follow(rule, meta, theta, gradients, layout):
    """Where a rule comes to from `theta` with given gradients, and its memory there."""
    inner = Inner({"theta": theta}, rule.slots(theta, layout))
    for grad in gradients:
        inner = rule.update(meta, inner, {"theta": grad}, layout)
    return inner


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def kit():
    """The small tasks, and builders of options and contexts."""
    return SimpleNamespace(
        Quadratics=Quadratics,
        Blobs=Blobs,
        learned=learned,
        rule=rule,
        build_rule=build_rule,
        moved=moved,
        follow=follow,
        optimizee=optimizee,
        learner=learner,
        saved=saved,
        tuned=tuned,
        context=context,
        with_estimator=with_estimator,
        spec=_spec,
    )
