"""What a diagnosis measures: the files of conf/diagnose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from metalearn import registry
from metalearn.compose import file_of, options
from metalearn.config import Config, required, resolve, typed
from metalearn.registry import UserError, closest
from metalearn.train.stored_config import plain

OF_A_RUN = "run"  # the file for a training run's checkpoint
NUMBERS = {"situations": 1, "draws": 2, "warmup": 0, "repeats": 1}  # what a diagnosis counts: the least value
OF_A_CANDIDATE = ("hypergradient", "windows", "second_derivatives", "draws")


@dataclass
class Diagnosis:
    """A run whose hypergradient is estimated in several ways."""

    overrides: list[str] = required()  # of the run: as `metalearn train` takes them
    warmup: int = required()  # steps of training before the state that is diagnosed
    situations: int = required()  # step indexes that the columns are averaged over
    draws: int = (
        required()
    )  # estimates of one situation by an estimator that samples, if its row says no other
    repeats: int = required()  # timed calls; their median counts
    estimators: dict[str, Any] = required()  # label: {hypergradient: NAME, its options, windows, ...}


@dataclass(frozen=True)
class CandidateOptions:
    """One row of the table, before anything is built."""

    label: str
    estimator: Any  # options of a registered hypergradient
    windows: int  # parts of the segment that are estimated one after the other and summed
    second_derivatives: bool  # False: gradients enter the update as constants, if they do not anyway
    draws: int  # of an estimator that samples


def problems() -> list[str]:
    """The names that `problem=` takes."""
    return [name for name in options("diagnose") if name != OF_A_RUN]


def read(name: str, changes: Mapping[str, str]) -> Diagnosis:
    """conf/diagnose/NAME.yaml with other numbers; `draws` is then that of every row. Raises UserError."""
    path = file_of(f"diagnose/{name}")
    if name not in (*problems(), OF_A_RUN):
        allowed = ", ".join([*closest(name, problems()), "all"])
        raise UserError(f"no problem is called {name!r}; choose one of: {allowed}")
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    numbers = {key: _whole(key, value) for key, value in changes.items()}
    found = typed(Diagnosis, {str(key): value for key, value in values.items()} | numbers, "")
    for row in found.estimators.values():
        if "draws" in numbers or "draws" not in row:
            row["draws"] = found.draws
    return found


def _whole(key: str, value: str) -> int:
    least = NUMBERS[key]
    if not value.isdecimal() or int(value) < least:
        raise UserError(f"{key}: got {value}, must be a whole number, at least {least}")
    return int(value)


def candidates(diagnosis: Diagnosis, chosen: Sequence[str], config: Config) -> list[CandidateOptions]:
    """The chosen estimators, by label or by registered name; all of the file's for none.

    A registered name that is no label stands for conf/hypergradient/NAME.yaml. Raises UserError.
    """
    found = []
    for name in chosen or list(diagnosis.estimators):
        if name not in diagnosis.estimators and name not in registry.names("hypergradient"):
            allowed = dict.fromkeys([*diagnosis.estimators, *registry.names("hypergradient")])
            raise UserError(
                f"no estimator is called {name!r}; choose one of: {', '.join(closest(name, list(allowed)))}"
            )
        values = diagnosis.estimators.get(name, {"hypergradient": name, "draws": diagnosis.draws})
        found.append(candidate(name, values, config))
    return found


def candidate(label: str, values: Mapping[str, Any], config: Config) -> CandidateOptions:
    """A row of conf/diagnose as checked options."""
    changes = {key: value for key, value in values.items() if key not in OF_A_CANDIDATE}
    chosen = estimator_options(config, values["hypergradient"], changes)
    windows, second_derivatives = values.get("windows", 1), values.get("second_derivatives", True)
    return CandidateOptions(label, chosen, windows, second_derivatives, values["draws"])


def estimator_options(config: Config, name: str, changes: Mapping[str, Any]) -> Any:
    """conf/hypergradient/NAME.yaml with changes, checked as those of a run. Raises UserError."""
    registry.entry("hypergradient", name)
    values = OmegaConf.to_container(OmegaConf.load(file_of(f"hypergradient/{name}")))
    assert isinstance(values, dict)
    whole = {**plain(config), "hypergradient": {**values, **changes}}
    return resolve(OmegaConf.create(whole)).hypergradient
