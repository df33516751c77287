"""The run that is diagnosed, at a state that training really reaches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from metalearn.build import Parts, build
from metalearn.compose import compose
from metalearn.config import Config, resolve
from metalearn.diagnose.config import Diagnosis
from metalearn.method import Bilevel, Situation
from metalearn.registry import UserError
from metalearn.train import checkpoint
from metalearn.tree import count


@dataclass(frozen=True)
class Subject:
    """A bilevel method and the steps it would take next, all from its present state."""

    config: Config
    parts: Parts
    groups: list[list[Situation]]  # the situations of each step: its hypergradient is their mean
    state: str  # which state it is, in words

    @property
    def numbers(self) -> int:
        """How many meta-parameters there are."""
        return count(self.groups[0][0].meta)

    @property
    def precision(self) -> str:
        """The numbers' type, and the products' where it differs."""
        dtype = str(next(iter(self.groups[0][0].meta.values())).dtype).removeprefix("torch.")
        chosen = self.config.machine.precision
        return dtype if chosen == "fp32" else f"{dtype}, {chosen} products"


def configured(diagnosis: Diagnosis, overrides: Sequence[str]) -> Config:
    """The configuration of a problem under more overrides."""
    return compose([*diagnosis.overrides, *overrides])


def warmed_up(config: Config, diagnosis: Diagnosis) -> Subject:
    """A fresh run after some steps of its own training."""
    parts = build(config)
    method = bilevel(parts)
    for index in range(diagnosis.warmup):
        method.step(index)
    groups = [method.situations(diagnosis.warmup + step) for step in range(diagnosis.situations)]
    return Subject(config, parts, groups, f"after {diagnosis.warmup} steps of training")


def stored(run: Path, overrides: Sequence[str]) -> Config:
    """A run directory's configuration under more overrides. Raises UserError."""
    if not (run / "run.yaml").exists():
        raise UserError(f"--run: {run} is no run directory (no run.yaml); metalearn list runs shows them")
    loaded = OmegaConf.load(run / "run.yaml")
    assert isinstance(loaded, DictConfig)
    changed = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(changed, DictConfig)
    return resolve(changed)


def restored(run: Path, config: Config, diagnosis: Diagnosis) -> Subject:
    """A run at its newest sound checkpoint. Raises UserError."""
    parts = build(config)
    method, state = bilevel(parts), _newest(run)
    method.load_state_dict(state["method"])
    # a finished run has no next step, and its schedules none either
    first = max(0, min(state["step"], config.train.steps - diagnosis.situations))
    groups = [method.situations(first + step) for step in range(diagnosis.situations)]
    return Subject(config, parts, groups, f"the checkpoint after {state['step']} steps")


def bilevel(parts: Parts) -> Bilevel:
    """The method, if it has a hypergradient. Raises UserError."""
    if not isinstance(parts.method, Bilevel):
        raise UserError(
            f"diagnose: method {type(parts.method).__name__} has no hypergradient to hold against the exact "
            "one; choose method=darts, learned_optimizer, maml or hyperparameters"
        )
    return parts.method


def _newest(run: Path) -> checkpoint.State:
    found = checkpoint.read_newest(run / "checkpoints")
    if found is None:
        raise UserError(f"--run: {run} has no checkpoint; let it run until train.checkpoint_every steps")
    return found.state
