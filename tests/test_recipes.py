"""Every recipe composes, builds and takes two steps at toy size; every plan's parts exist."""

import re

import pytest

from metalearn import cli, registry
from metalearn.build import build
from metalearn.compose import CONF, compose, options, recompose
from metalearn.machine import Machine
from metalearn.replicate import load
from metalearn.replicate.check import check_run
from metalearn.replicate.jobs import jobs
from metalearn.report.plan import stage_of
from metalearn.rng import generator

cli.register_all()
RECIPES = options("recipe")


def _text(name):
    return (CONF / f"recipe/{name}.yaml").read_text()


# by their text: to compose all takes longer than most tests
PLANS = [name for name in RECIPES if re.search(r"^replicate:|^ *- /replicate/", _text(name), re.MULTILINE)]
RUNS = [name for name in RECIPES if name not in PLANS]

# the same objects at a size that a test can pay for: (recipe prefix, overrides)
TOY = {
    "darts/cifar10_search": ["task=digits", "task.batch=4", "network.cells=3", "network.channels=2"],
    "darts/variants/drnas": [
        "task=digits", "task.batch=4", "network.cells=3", "network.channels=12", "method.warm_up=0",
    ],
    "darts/variants/pcdarts": [
        "task=digits", "task.batch=4", "network.cells=3", "network.channels=8", "method.warm_up=0",
    ],
    "darts/variants/pdarts": [  # the second step begins the second stage
        "task=digits", "task.batch=4", "network.cells=3", "network.channels=2", "train.steps=3",
        "method.warm_up=0", "method.stages.cells=[4,5]",
    ],
    "darts/variants/darts_pt": [  # all decisions before the second step
        "task=digits", "task.batch=4", "network.cells=3", "network.channels=2", "network.nodes=1",
        "task.evaluation_batch=4", "train.steps=2", "method.selection.steps=0", "method.selection.batches=1",
    ],
    "darts/variants/": [
        "task=digits", "task.batch=4", "task.cutout=0", "network.cells=3", "network.channels=2",
    ],
    "darts/cifar10_weight_sharing": [
        "task=digits", "task.batch=4", "network.cells=3", "network.channels=2", "train.steps=2",
        "method.candidates=2", "method.batches=1",
    ],
    "darts/mnist_search": [
        "task=digits", "task.batch=4", "task.valid_size=238", "network.cells=3", "network.channels=2",
    ],
    "darts/mnist_weight_sharing": [
        "task=digits", "task.batch=4", "task.valid_size=238", "network.cells=3", "network.channels=2",
        "train.steps=2", "method.candidates=2", "method.batches=1",
    ],
    "darts/mnist_retrain": [
        "task=digits", "task.batch=4", "task.valid_size=238", "network.cells=3", "network.channels=2",
    ],
    "darts/ptb_weight_sharing": ["task=python_docs", "task.batch=4", "task.time=5", "network.units=8"],
    "darts/cifar10_retrain": [
        "task=digits", "task.batch=4", "network.cells=3", "network.channels=2", "network.auxiliary=false",
        "method.auxiliary_weight=0",
    ],
    "darts/imagenet_retrain": [
        "task=digits", "task.batch=4", "network=darts_cell", "network.cells=3", "network.channels=2",
        "network.auxiliary=false", "method.auxiliary_weight=0",
    ],
    "darts/ptb_search": ["task=python_docs", "task.batch=4", "task.time=5", "network.units=8"],
    "darts/ptb_retrain": ["task=python_docs", "task.batch=4", "task.time=5", "network.units=8"],
    "darts/wt2_retrain": ["task=python_docs", "task.batch=4", "task.time=5", "network.units=8"],
    "hypernetworks/mnist_": ["task=digits", "task.batch=4", "task.valid_size=238"],
    "hypernetworks/cifar10_hyper": [
        "task=digits", "task.batch=4", "task.valid_size=238", "network.options.depth=10",
    ],
    "hypernetworks/cifar10_": ["task=digits", "task.batch=4", "task.valid_size=238", "network.depth=10"],
    "hypernetworks/iam_": [  # needs no data
        "task=pen_strokes", "~task.split", "~task.least_points", "task.batch=2", "network.units=8",
    ],
    "hypernetworks/pen_strokes_": ["task.batch=2", "network.units=8"],
    "hypernetworks/wmt14_": [  # needs no data
        "task=phrases", "task.batch=4", "task.pieces=150", "task.train_pairs=200", "network.units=8",
        "network.layers=3", "network.attention_units=8",
    ],
    "hypernetworks/phrases_": [
        "task.batch=4", "task.pieces=150", "task.train_pairs=200", "network.units=8",
    ],
    "hypernetworks/": ["task=python_docs", "task.batch=2", "task.time=4", "network.units=8"],
    "learned_optimizers/cifar": [
        "task=digits", "task.batch=4", "task.valid_size=20", "method.horizon=20", "method.valid_problems=2",
    ],
    "learned_optimizers/neural_art": [
        "task.side=16", "task.features=random", "task.thinning=16", "task.content_layers=[conv2_1]",
        "task.style_layers=[conv1_1,conv2_1]", "method.valid_problems=2",
    ],
    "learned_optimizers/mnist": ["task=digits", "task.batch=4"],
    "learned_optimizers/black_box/": ["task.batch=4", "method.horizon=12"],
    "maml/sinusoid": ["task.batch=2"],
    "maml/omniglot": ["task=sinusoid", "~task.ways", "task.batch=2", "network=mlp"],  # needs no data
    "hyperparameters/": ["task=digits", "task.batch=4", "method.horizon=3"],
}  # fmt: skip


def _firsts(recipes):
    """The first of each folder: for what is the same for all."""
    return list({name.rpartition("/")[0]: name for name in reversed(recipes)}.values())


def _mostly_slow(recipes):
    """The first of each folder is tested always, the others where time does not matter."""
    firsts = _firsts(recipes)
    return [name if name in firsts else pytest.param(name, marks=pytest.mark.slow) for name in recipes]


def _unlike(found, seen, whole):
    """One job of each recipe; `whole`: and of each set of options, whatever they are set to."""
    for job in found:
        options = tuple(line.partition("=")[0] for line in job.overrides if whole)
        if not job.choice and (job.overrides[0], options) not in seen:
            seen.add((job.overrides[0], options))
            yield job


def _toy(name):
    return next((lines for prefix, lines in TOY.items() if name.startswith(prefix)), [])


@pytest.mark.parametrize("name", _mostly_slow(RUNS))
def test_recipe_composes(name):
    config = compose([f"recipe={name}"])
    assert config.name == name
    assert config.paper is None or config.paper.source


@pytest.mark.parametrize("name", _firsts(RUNS))
def test_the_hypergradient_of_a_recipe_is_one_switch(name):
    assert recompose([f"recipe={name}", "hypergradient=first_order"]).hypergradient == {"name": "first_order"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """An optimizer on disk, for the recipes that apply one."""
    from metalearn.learned_optimizers import stored

    folder = tmp_path_factory.mktemp("trained")
    config = compose(["rule=lstm", "rule.hidden=2"])
    rule = registry.build("rule", config.rule, machine=Machine(config.machine))
    stored.save(folder, rule, rule.init(generator(0)), {})
    return str(folder)


@pytest.mark.parametrize("name", _mostly_slow(RUNS))
def test_recipe_takes_two_steps_at_toy_size(name, trained):
    config = compose([f"recipe={name}", "machine=cpu", *_toy(name)])
    if config.method.name == "applied_optimizer":
        config.method.optimizer = trained
    method = build(config).method
    for index in range(2):
        metrics = method.step(index)
        assert all(value.isfinite().all() for value in metrics.values())


def _groups(plans):
    """Plans by the file of conf/replicate that they share, or by their own name."""
    found = {}
    for name in plans:
        shared = re.search(r"^ *- /replicate/(\w+)", _text(name), re.MULTILINE)
        found.setdefault(shared[1] if shared else name, []).append(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("names", [pytest.param(names, id=key) for key, names in _groups(PLANS).items()])
def test_plans_are_whole(names, tmp_path):
    """At every tier: of each recipe a run is composed, at the plan's own tier of each set of options."""
    seen = {}
    for name in names:
        block = recompose([f"recipe={name}"]).replicate
        for plan in (plan for tier in block.get("tiers", {}) or [None] for plan in load(name, None, tier)):
            own = plan.tier == block.get("tier", "")
            assert {stage_of(row) for row in plan.table.rows.values()} <= set(plan.stages)
            stages = [figure.get("stage") for figure in plan.figures if "stage" in figure]
            assert set(stages) <= set(plan.stages)
            for job in _unlike(jobs(plan, [], tmp_path), seen.setdefault(plan.tier, set()), own):
                check_run(plan, job.stage, compose(job.overrides))


@pytest.mark.parametrize("name", _firsts(RUNS))
def test_a_recipe_without_a_plan_is_run_over_seeds(name, tmp_path):
    (plan,) = load(name)
    assert (plan.seeds, list(plan.stages)) == ([0, 1, 2], ["run"])
    *_, last = jobs(plan, [], tmp_path)
    assert compose(last.overrides).seed == last.seed == 2
