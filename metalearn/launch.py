"""`metalearn train`: the Hydra application, and what its errors mean."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metalearn import plugins
from metalearn.compose import CONF, compose, options, recompose
from metalearn.config import Config, resolve
from metalearn.registry import GROUPS, UserError, closest

if TYPE_CHECKING:
    from metalearn.build import Parts
    from metalearn.diagnose.probe import Probe

CONFIG_GROUPS = (*GROUPS, "machine", "log", "sweep", "launcher", "recipe")
DRY = "--dry-run"
LOOKS = (
    "--cfg",
    "-c",
    "--help",
    "-h",
    "--hydra-help",
    "--info",
    "-i",
    "--version",
    "--shell",
    "-sc",
)  # Hydra's


def run_one(
    config: Config, command: Sequence[str], describe: Callable[[Path], None] | None = None
) -> Path | None:
    """Run one checked configuration to its end; its run directory. Nothing is done for a finished one.

    Under torchrun process 0 does so; the others take part in its steps and have no directory: None.
    """
    from metalearn.build import build
    from metalearn.machine import Machine
    from metalearn.train import loop
    from metalearn.train.run_directory import open_run

    if os.environ.get("RANK", "0") != "0":
        parts = _fitting(build(config), config)
        loop.follow(parts.method, parts.machine.processes)
        return None
    with open_run(config, command=command) as directory:
        if directory.finished:
            loop.dismiss(Machine(config.machine).processes)
        else:
            parts = _fitting(build(config), config)
            directory.record_task(parts.method.learns_on or parts.task.spec)
            probe = _probe(config, parts)
            loop.run(config, parts.method, directory, describe, probe, parts.machine.processes)
        return directory.path


def _probe(config: Config, parts: "Parts") -> "Probe | None":
    """What compares hypergradients as the run goes on, if it is asked for. Raises UserError."""
    if not config.train.diagnose_every:
        return None
    from metalearn.diagnose.probe import Probe

    return Probe(config, parts)


def _fitting(parts: "Parts", config: Config) -> "Parts":
    """`parts`, if its method can use all processes and be tested as asked. Raises UserError."""
    if config.train.test and not parts.method.reads_test:
        raise UserError(
            f"train.test: got true, but method {config.method.name} never reads the test split; set "
            "train.test=false"
        )
    size = parts.machine.processes.size
    if size > 1 and not parts.method.shares_steps:
        raise UserError(
            f"method {config.method.name}: {size} processes were started, it runs in one; start it without "
            "torchrun (-m with several seeds, or replicate, use several cores)"
        )
    return parts


def launch(arguments: list[str]) -> int:
    """Run `metalearn train ARGUMENTS`: one run, or with -m a sweep (`metalearn.sweep`)."""
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, not to Hydra's printer
    if "COMP_LINE" in os.environ:
        os.environ["COMP_LINE"] = re.sub(r"\btrain\s", "", os.environ["COMP_LINE"], count=1)
    arguments = of_agent(arguments)
    sweep = [argument for argument in arguments if argument in ("-m", "--multirun")]
    others = _rerun([argument for argument in arguments if argument not in (*sweep, DRY)])
    if DRY in arguments and not sweep:
        raise UserError(f"{DRY}: says what a sweep would run; add -m")
    if sweep and not any(argument.startswith(LOOKS) for argument in others):
        return _sweep(others, DRY in arguments)
    sys.argv = [sys.argv[0], *(_common(others) if sweep else others)]
    failures: list[Exception] = []

    def job(composed: DictConfig) -> None:
        try:
            _refuse_plan(composed)
            _refuse_sweep(_job_overrides())
            run = run_one(resolve(composed), ["metalearn", "train", *arguments], _describe)
            if run is not None:
                _tell(run)
        except Exception as error:  # kept from Hydra, whose printer would add a line of its own
            failures.append(error)

    plugins.open_search_path()
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, arguments) from error
    if failures:
        raise failures[0]
    return 0


def of_agent(arguments: list[str]) -> list[str]:
    """The arguments as Hydra reads them: under W&B's agent null comes as Python writes it."""
    if "WANDB_SWEEP_ID" not in os.environ:
        return arguments
    return [re.sub(r"=None$", "=null", argument) for argument in arguments]


def _sweep(arguments: Sequence[str], dry: bool) -> int:
    if "WORLD_SIZE" in os.environ:
        raise UserError("-m: a sweep cannot share processes; start its jobs by torchrun one by one")
    from metalearn.sweep.command import sweep

    with explained(arguments):
        return sweep(arguments, dry)


def _common(arguments: Sequence[str]) -> list[str]:
    """What the jobs of a sweep share, for Hydra to show; it takes no -m with --cfg, nor split overrides."""
    from metalearn.sweep.space import parse

    lines = [line for line in arguments if "=" in line and not line.startswith("-")]
    with explained(lines):
        shared = [
            line
            for line, override in zip(lines, parse(lines), strict=True)
            if not override.is_sweep_override()
        ]
    return [*(argument for argument in arguments if argument not in lines), *shared]


def _refuse_sweep(overrides: Sequence[str]) -> None:
    """What only a sweep reads. Raises UserError."""
    for override in overrides:
        if re.match(r"(sweep|launcher)[=.]", override):
            raise UserError(f"{override}: says how a sweep goes; add -m")


def _refuse_plan(composed: DictConfig) -> None:
    if composed.get("replicate") is not None:
        stages = composed.replicate.get("stages", {}).values()
        names = dict.fromkeys(stage.recipe for stage in stages if "recipe" in stage)
        raise UserError(
            "recipe: it is a plan of several runs; use metalearn replicate NAME"
            + "".join(f", or train recipe={name}" for name in names)
        )


def _describe(run: Path) -> None:
    """The run's report; a page that cannot be drawn costs no run."""
    from metalearn import report

    try:
        report.page_of(run)
    except Exception as error:
        print(f"metalearn: no report of {run} ({type(error).__name__}: {error})", file=sys.stderr)


def _tell(run: Path) -> None:
    """The last value of every metric, and where the run lies."""
    from metalearn import records

    found = records.read(run)
    width = max((len(name) for name in found.metrics), default=0)
    for name in found.metrics:
        print(f"  {name:<{width}}  {found.last(name):.5g}  {found.stamp(name)}".rstrip())
    if found.state == "stopped":
        print(f"stopped {found.message}: {run}; without train.stop_at it goes on")
    else:
        print(f"finished: {run / 'report.html'}")


def _job_overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def _rerun(arguments: list[str]) -> list[str]:
    """`--config-dir RUN` of a run directory means the configuration stored there."""
    if "--config-dir" not in arguments:
        return arguments
    place = arguments.index("--config-dir") + 1
    if place == len(arguments) or not (Path(arguments[place]) / "run.yaml").exists():
        raise UserError(
            f"--config-dir: {' '.join(arguments[place:][:1])!r} is no run directory (it has no run.yaml)"
        )
    named = [] if "--config-name" in arguments else ["--config-name", "run"]
    return [*named, *arguments]


def checked(overrides: Sequence[str]) -> Config:
    """The configuration of these overrides. Raises UserError, also for what Hydra refuses."""
    with explained(overrides):
        return compose(overrides)


@contextlib.contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """A block in which what Hydra refuses of these overrides is raised as UserError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error


def explain(error: Exception, arguments: Sequence[str]) -> UserError:
    """Hydra's error as one message with the key, what came and what is allowed."""
    text = str(error)
    override = getattr(error, "override", None)
    if override:
        return UserError(f"{override}: cannot be read as KEY=VALUE; quote lists and blanks, e.g. 'key=[1,2]'")
    missing = re.search(r"Could not find '([\w/.-]+)'", text)
    if missing:
        group, _, name = missing[1].partition("/")
        if group in CONFIG_GROUPS:
            allowed = closest(name, options(group))
            return UserError(f"no {group} is called {name!r}; choose one of: {', '.join(allowed)}")
    key = re.search(r"Could not (?:override|append to config)[^']*'([\w./@-]+)'", text)
    if key:
        return _unknown_key(key[1], arguments)
    return UserError(" ".join(line.strip() for line in text.splitlines()[:3] if line.strip()))


def _stored(arguments: Sequence[str]) -> DictConfig | None:
    """The configuration that `--config-dir RUN` names, if the command line has it."""
    if "--config-dir" not in arguments:
        return None
    return OmegaConf.load(Path(arguments[arguments.index("--config-dir") + 1]) / "run.yaml")  # type: ignore


def _unknown_key(key: str, arguments: Sequence[str]) -> UserError:
    others = [
        a for a in arguments if "=" in a and not a.startswith("-") and not a.lstrip("+~").startswith(key)
    ]
    parent, _, leaf = key.rpartition(".")
    node: object = None
    with contextlib.suppress(Exception):  # the other overrides may be wrong too: one mistake at a time
        composed = _stored(arguments) or recompose(others)
        node = OmegaConf.select(composed, parent) if parent else composed
    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    if key == "sweep.params":
        return UserError(
            f"{key}: its keys are named freely, so a command line adds them: '+{key}={{KEY: VALUES}}'"
        )
    if leaf in known and isinstance(node, DictConfig):
        fields = ", ".join(f"{key}.{name}" for name in OmegaConf.select(node, leaf) or ())
        return UserError(f"{key}: cannot be chosen anew in a stored configuration; set its options: {fields}")
    if key.startswith("mixture.members.") and ".draw." in key:
        return UserError(f"{key}: what is drawn is named freely, so a command line adds it: +{key}=...")
    allowed = (
        f"choose one of: {', '.join(closest(leaf, known))}"
        if known
        else "metalearn train --cfg job shows all"
    )
    return UserError(f"{key}: no such option; {allowed}")
