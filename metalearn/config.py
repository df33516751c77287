"""The options of a run, checked before anything is imported or read: names, types, ranges."""

import dataclasses
import math
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, get_args, get_origin

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metalearn import registry
from metalearn.registry import UserError


def number(
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field for a finite number in a range; its value comes from conf/."""
    limits = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return field(default=MISSING, metadata={k: v for k, v in limits.items() if v is not None})


def choice(*allowed: str) -> Any:
    """A dataclass field for one of a few words."""
    return field(default=MISSING, metadata={"choice": allowed})


def required() -> Any:
    """A dataclass field of any value of its type; its value comes from conf/."""
    return field(default=MISSING)


@dataclass
class TrainOptions:
    """The loop's budget and cadence; every cadence is in steps, 0 means never."""

    steps: int = number(at_least=1)
    minutes: float | None = number(above=0)  # wall-clock budget; null: none
    stop_at: int | None = field(default=None, metadata={"at_least": 1})  # leave off there, to go on later
    log_every: int = number(at_least=1)
    evaluate_every: int = number(at_least=0)
    checkpoint_every: int = number(at_least=0)
    keep: int = number(at_least=2)  # checkpoints kept, beside the best one
    monitor: str | None = required()  # the evaluation metric that names the best checkpoint, e.g. valid/loss
    goal: str = choice("min", "max")
    select: str = choice("last", "best")  # which checkpoint the final test and the artifacts use
    test: bool = required()  # evaluate the test split once, at the end
    diagnose_every: int = number(at_least=0)  # hold hypergradients against the exact one before such a step
    diagnose: list[str] = required()  # which estimators, as in hypergradient=NAME


@dataclass
class MachineOptions:
    """Where and how tensors are computed."""

    name: str = required()
    device: str = choice("auto", "cpu", "cuda")
    precision: str = choice("fp32", "tf32", "bf16")
    compile: bool = required()
    fused: bool = required()  # our own kernels where they fit; false: the plain networks, for reference
    deterministic: bool = required()
    threads: int = number(
        at_least=0, at_most=1024
    )  # 0: torch's own choice; the count changes the last bits of sums
    timeout: float = number(above=0)  # seconds that processes of one run wait for each other


@dataclass
class LogOptions:
    """Tracking; `metrics.jsonl` is written in any case."""

    name: str = choice("offline", "wandb", "none")
    project: str = required()
    entity: str | None = required()
    tags: list[str] = required()
    progress: bool = required()  # the bar on a terminal, or plain lines elsewhere
    group: str | None = field(default=None)  # which runs stand together; null: those of one name, or sweep


@dataclass
class PaperOptions:
    """The published value that a recipe is held to."""

    source: str = required()
    metric: str = required()
    value: float | None = required()
    spread: float | None = required()
    unit: str = required()
    others: dict[str, float] = field(default_factory=dict)  # the same source's values of other metrics


@dataclass
class Config:
    """A whole run."""

    seed: int = number(at_least=0)
    data_dir: str = required()  # where data files are looked for, and kept after a download
    download: bool = required()  # fetch missing data files from their usual source
    runs: str = required()  # the folder that holds run directories
    run_dir: str | None = required()  # this run's directory; null: a new one under `runs`
    name: str = required()  # what the run is called and grouped by; a recipe gives its own
    role: str = required()  # search, retrain, control, ...: W&B's job_type
    task: Any = required()
    network: Any = required()
    method: Any = required()
    hypergradient: Any = required()
    rule: Any = required()  # learned optimizers: what turns gradients into updates
    mixture: Any = required()  # learned optimizers: other problems than the one of task and network
    train: TrainOptions = field(default_factory=TrainOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    log: LogOptions = field(default_factory=LogOptions)
    paper: PaperOptions | None = required()


NOT_OF_A_RUN = (
    "replicate",
    "sweep",
    "launcher",
    "defaults",
    "hydra",
)  # what a recipe or a stored configuration also holds


def resolve(composed: DictConfig) -> Config:
    """The checked configuration as plain dataclasses.

    Raises UserError with the key, its value and what is allowed.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'the configuration'}: {str(error).splitlines()[0]}") from None
    assert isinstance(plain, dict)
    values = {str(key): value for key, value in plain.items() if key not in NOT_OF_A_RUN}
    groups = {group: values.pop(group, None) for group in registry.GROUPS}
    config = typed(Config, {**values, **dict.fromkeys(groups)}, "")
    for group, options in groups.items():
        setattr(config, group, _group(group, options))
    _check(config, "")
    return config


def _group(group: str, options: Any) -> Any:
    if group in registry.OPTIONAL and options is None:
        return None
    if not isinstance(options, dict) or "name" not in options:
        raise UserError(
            f"{group}: got {options!r}; choose one by {group}=NAME, of: {', '.join(registry.names(group))}"
        )
    if group in registry.OPTIONAL and options["name"] == "none":
        return None
    return typed(registry.entry(group, options["name"]).options, options, f"{group}.")


def typed(schema: type, values: dict[str, Any], prefix: str) -> Any:
    """`values` as an instance of the dataclass `schema`. Raises UserError that names `prefix` + key."""
    _refuse_unknown(schema, values, prefix)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise _mistyped(schema, values, prefix, error) from None


def checked(schema: type, values: dict[str, Any], prefix: str) -> Any:
    """`typed`, and every number in its range."""
    options = typed(schema, values, prefix)
    _check(options, prefix)
    return options


def _mistyped(schema: type, values: dict[str, Any], prefix: str, error: OmegaConfBaseException) -> UserError:
    """What came and what type is wanted, for OmegaConf's error on one key."""
    path = str(error.full_key or "").partition("[")[0]
    value: Any = values
    kind: Any = schema
    for key in path.split("."):
        group = _group_in(kind)
        if group is None or not isinstance(value, dict):
            break
        value, kind = value.get(key), {f.name: f.type for f in dataclasses.fields(group)}.get(key)
    if kind is schema or kind is None:
        return UserError(f"{prefix}{path}: {str(error).splitlines()[0]}")
    if value is None:
        return UserError(f"{prefix}{path}: has no value; it takes {_words(kind)}")
    return UserError(f"{prefix}{path}: got {value!r}, must be {_words(kind)}")


def _group_in(kind: Any) -> Any:
    """The dataclass that a field's type is, or may be beside null."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((part for part in kinds if dataclasses.is_dataclass(part)), None)


def _words(kind: Any) -> str:
    """A type as a user would say it."""
    if isinstance(kind, UnionType):
        return " or ".join(_words(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return f"a list, e.g. '[a,b]', of which each is {_words(get_args(kind)[0])}"
    if dataclasses.is_dataclass(kind):
        return "a group with " + ", ".join(f.name for f in dataclasses.fields(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(kind, str(kind))


def _refuse_unknown(schema: type, values: dict[str, Any], prefix: str) -> None:
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
    for key, value in values.items():
        if key not in fields:
            allowed = ", ".join(registry.closest(str(key), list(fields)))
            raise UserError(f"{prefix}{key}: no such option; choose one of: {allowed}")
        group = _group_in(fields[key])
        if group is not None and isinstance(value, dict):
            _refuse_unknown(group, value, f"{prefix}{key}.")


def _check(options: Any, prefix: str) -> None:
    for f in dataclasses.fields(options):
        value, key = getattr(options, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            _check(value, key + ".")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}: got {value}, must be a finite number")
        elif value is not None:
            _check_range(key, value, dict(f.metadata))


def _check_range(key: str, value: Any, limits: dict[str, Any]) -> None:
    holds = {
        "above": lambda limit: value > limit,
        "at_least": lambda limit: value >= limit,
        "below": lambda limit: value < limit,
        "at_most": lambda limit: value <= limit,
        "choice": lambda limit: value in limit,
    }
    words = {
        "above": "above",
        "at_least": "at least",
        "below": "below",
        "at_most": "at most",
        "choice": "one of",
    }
    if isinstance(value, list):
        for part in value:
            _check_range(key, part, limits)
    elif not all(holds[name](limit) for name, limit in limits.items()):
        allowed = " and ".join(
            f"{words[name]} {', '.join(limit) if name == 'choice' else limit}"
            for name, limit in limits.items()
        )
        raise UserError(f"{key}: got {value!r}, must be {allowed}")
