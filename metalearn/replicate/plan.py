"""The language of a plan: the `replicate` block of a recipe, and what it is at one of its tiers."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from metalearn.compose import options, recompose
from metalearn.config import required, typed
from metalearn.launch import checked
from metalearn.registry import UserError, closest

SEEDS = [0, 1, 2]  # of a recipe that has no plan


@dataclass
class SelectOptions:
    """Which run of another stage goes on: the one with the best value of a validation metric."""

    stage: str = required()
    metric: str = required()
    goal: str = required()
    value: str = "last"  # which value of a run counts: last or best


@dataclass
class StageOptions:
    """One run, repeated for each seed; or a selection among the runs of another stage.

    `{other}` in an override is that stage's run directory: the run with the same seed, or what a selection
    has chosen. `per_seed: n` makes n runs for each seed s, with the seeds n s to n s + n - 1; a selection
    among them chooses one for each s, any other selection chooses one in all.
    """

    recipe: str = ""
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] | None = None  # null: the plan's
    per_seed: int | None = None
    select: SelectOptions | None = None


@dataclass
class TierStageOptions:
    """What a tier changes of one stage; its overrides come after the stage's own."""

    overrides: list[str] = field(default_factory=list)
    seeds: list[int] | None = None
    per_seed: int | None = None


@dataclass
class TierOptions:
    """A budget: what it changes of the whole plan and of its stages. `overrides` are for every run."""

    seeds: list[int] | None = None
    overrides: list[str] = field(default_factory=list)
    stages: dict[str, TierStageOptions] = field(default_factory=dict)


@dataclass
class TableOptions:
    """The table of a plan. The first row is held against the best of the others, or as `claims` says."""

    metric: str = required()
    goal: str = required()
    unit: str = required()
    rows: dict[str, str] = required()  # contender: stage, or "stage metric" for a metric of its own
    claims: dict[str, list[str]] = field(
        default_factory=dict
    )  # what is equal: contenders held against each other


@dataclass
class Plan:
    """What `replicate` makes of one recipe."""

    family: str = required()
    seeds: list[int] = required()
    stages: dict[str, StageOptions] = required()
    table: TableOptions = required()
    figures: list[dict[str, Any]] = field(default_factory=list)
    folder: str = ""  # plans with the same one share their runs; empty: the plan's name
    tier: str = ""  # the tier that is taken where none is asked for; empty: the plan has none
    tiers: dict[str, TierOptions] = field(default_factory=dict)
    name: str = ""

    @property
    def place(self) -> str:
        """Where its runs lie, and the group they are tracked in: tiers do not mix."""
        return "/".join(filter(None, (self.folder or self.name, self.tier)))

    @property
    def selections(self) -> list[str]:
        """The stages that are no runs."""
        return [name for name, stage in self.stages.items() if stage.select]

    def seeds_of(self, stage: str) -> list[int | None]:
        """The seeds that a stage is repeated for; [None] for a selection of one run in all."""
        options_ = self.stages[stage]
        if options_.select:
            return list(self._base(options_.select.stage)) if self.chooses_by_seed(stage) else [None]
        count = options_.per_seed or 1
        return [count * seed + number for seed in self._base(stage) for number in range(count)]

    def chooses_by_seed(self, stage: str) -> bool:
        """Whether a stage is a selection that goes on with one run for each seed."""
        select = self.stages[stage].select
        return select is not None and self.stages[select.stage].per_seed is not None

    def candidates(self, stage: str, seed: int | None) -> list[int]:
        """The seeds of the runs that a selection chooses among."""
        select = self.stages[stage].select
        assert select is not None
        everything = [seed for seed in self.seeds_of(select.stage) if seed is not None]
        count = self.stages[select.stage].per_seed
        if seed is None or count is None:
            return everything
        return [candidate for candidate in everything if candidate // count == seed]

    def needs(self, stage: str) -> list[str]:
        """The stages that one builds on, in the order of the plan."""
        options_ = self.stages[stage]
        if options_.select:
            return [options_.select.stage]
        return [name for name in self.stages if any(f"{{{name}}}" in line for line in options_.overrides)]

    def paired(self, stage: str) -> bool:
        """Whether its runs with different seeds share nothing: no selection went on with one run for all."""
        if self.stages[stage].select and not self.chooses_by_seed(stage):
            return False
        return all(self.paired(need) for need in self.needs(stage))

    def _base(self, stage: str) -> list[int]:
        seeds = self.stages[stage].seeds
        return self.seeds if seeds is None else seeds


def load(name: str, seeds: list[int] | None = None, tier: str | None = None) -> list[Plan]:
    """The plans of a recipe: its own, those that it includes, or a plain run over seeds. Raises UserError."""
    from metalearn.replicate.check import check

    if name not in options("recipe"):
        raise UserError(
            f"no recipe is called {name!r}; choose one of: {', '.join(closest(name, options('recipe')))}"
        )
    values = block(name)
    if values is None:
        _refuse_tier(name, tier)
        return [_over_seeds(name, seeds or SEEDS)]
    if "include" in values:
        return [plan for part in values["include"] for plan in load(part, seeds, tier)]
    plan: Plan = typed(Plan, {**values, "name": name}, "replicate.")
    _take_tier(plan, tier)
    plan.seeds = seeds or plan.seeds
    check(plan)
    return [plan]


def block(name: str) -> dict[str, Any] | None:
    """The `replicate` block of a recipe as it stands there."""
    composed = OmegaConf.to_container(recompose([f"recipe={name}"]), resolve=False)
    assert isinstance(composed, dict)
    return composed["replicate"]


def _refuse_tier(name: str, tier: str | None) -> None:
    if tier is not None:
        raise UserError(f"tier={tier}: recipe {name} has no tiers; leave tier= out, or override its options")


def _take_tier(plan: Plan, tier: str | None) -> None:
    """Make the plan what it is at `tier`, or at the one that it names itself."""
    if not plan.tiers:
        _refuse_tier(plan.name, tier)
        return
    plan.tier = plan.tier if tier is None else tier
    if plan.tier not in plan.tiers:
        allowed = ", ".join(closest(plan.tier, list(plan.tiers)))
        raise UserError(f"tier={plan.tier}: recipe {plan.name} has no such tier; choose one of: {allowed}")
    chosen = plan.tiers[plan.tier]
    plan.seeds = plan.seeds if chosen.seeds is None else chosen.seeds
    for name in chosen.stages:
        if name not in plan.stages:
            allowed = ", ".join(closest(name, list(plan.stages)))
            raise UserError(
                f"replicate.tiers.{plan.tier}.stages: no stage is called {name!r}; choose one of: {allowed}"
            )
    for name, stage in plan.stages.items():
        change = chosen.stages.get(name) or TierStageOptions()
        if not stage.select:
            stage.overrides = [*stage.overrides, *chosen.overrides, *change.overrides]
        stage.seeds = stage.seeds if change.seeds is None else change.seeds
        stage.per_seed = stage.per_seed if change.per_seed is None else change.per_seed


def _over_seeds(name: str, seeds: list[int]) -> Plan:
    """A recipe without a plan of its own: the same run with each seed, held against its paper alone."""
    config = checked([f"recipe={name}"])
    metric = config.paper.metric if config.paper else config.train.monitor
    if metric is None:
        raise UserError(f"recipe {name}: names no metric to report; set paper.metric or train.monitor")
    unit = config.paper.unit if config.paper else ""
    table = TableOptions(metric, config.train.goal, unit, {name.rpartition("/")[2]: "run"})
    return Plan(config.method.name, seeds, {"run": StageOptions(name)}, table, name=name)
