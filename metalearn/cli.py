"""`metalearn train | replicate | diagnose | report | ...`: the only file that knows every part.

Exit codes: 0 done, 1 failed, 2 a mistake in the command or its configuration, 3 diverged,
128 + n stopped by signal n after a checkpoint (130 Ctrl-C, 143 SIGTERM).
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from metalearn.arguments import Parser, integers
from metalearn.registry import UserError, closest

COMMANDS = {
    "train": "run one configuration: Hydra overrides, -m for a sweep, --cfg job to look at it",
    "replicate": "run recipes with their controls and seeds as one resumable command, then report",
    "diagnose": "hold hypergradient estimators against the exact one: bias, variance, time, memory",
    "report": "write report.md and report.html for finished or running runs",
    "compare": "several runs: what differs, how they ended, their curves",
    "publish": "upload runs to W&B, and build a W&B report of their comparison",
    "export": "take the result out of a run: genotype, weights, optimizer",
    "sample": "generate from a run's checkpoint: text, handwriting, translations",
    "list": "tasks, networks, methods, hypergradients, rules, mixtures, recipes, problems or runs",
}
FAMILIES = (
    "tasks",
    "metalearn.options",
    "metalearn.hypergradient",
    "metalearn.darts",
    "metalearn.hypernetworks",
    "metalearn.learned_optimizers",
    "metalearn.maml",
    "metalearn.hyperparameters",
)
LISTS = (
    "tasks", "networks", "methods", "hypergradients", "rules", "mixtures", "recipes", "problems", "runs",
)  # fmt: skip


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without our signs costs the sign, not the run
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        sys.exit(_dispatch(arguments))
    except UserError as error:
        if debug:
            raise
        print(f"{_speaker()}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{_speaker()}: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = str(error).splitlines() or [""]
        failed = f"failed: {type(error).__name__}: {text[0]}; --debug shows where"
        print(f"{_speaker()}: {failed}", file=sys.stderr)
        sys.exit(1)


def _speaker() -> str:
    """Who a message is from: torchrun shows those of every process, often the same one."""
    rank = os.environ.get("RANK", "0")
    return "metalearn" if rank == "0" else f"metalearn: process {rank}"


def _dispatch(arguments: list[str]) -> int:
    handlers: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "replicate": _replicate,
        "diagnose": _diagnose,
        "report": _report,
        "compare": _compare,
        "publish": _publish,
        "export": _export,
        "sample": _sample,
        "list": _list,
    }
    if arguments and arguments[0].startswith("-sc"):
        return _train(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    command, *rest = arguments
    if command not in handlers:
        raise UserError(
            f"no command is called {command!r}; choose one of: {', '.join(closest(command, list(handlers)))}"
        )
    return handlers[command](rest)


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metalearn COMMAND ... [--debug]",
            "",
            "Gradient-based meta-learning on one footing: DARTS, HyperNetworks, learned optimizers, MAML.",
            "",
            *lines,
            "",
            "start with:  metalearn replicate quickstart",
            "--debug shows the traceback of an error.",
        ]
    )


def register_all() -> None:
    """Make every option of the suite and of its plugins known. Imports no torch."""
    from metalearn import plugins

    for package in FAMILIES:
        importlib.import_module(package)
    plugins.load()


def _train(arguments: list[str]) -> int:
    from metalearn.launch import launch

    register_all()
    return launch(arguments)


def _replicate(arguments: list[str]) -> int:
    parser = _parser(
        "replicate", "Runs already finished are skipped, interrupted ones go on, failed ones start again."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help="recipes with a plan, tier=NAME (its budget), and key=value overrides for every run",
    )  # fmt: skip
    parser.add_argument("--seeds", type=integers, help="instead of the plan's own, e.g. 0,1,2")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one a core, or one on a GPU")
    parser.add_argument("--runs", default="runs", help="the folder of run directories (default: runs)")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--list", action="store_true", help="published rows beside ours: all, or of NAME")
    other.add_argument("--status", action="store_true", help="how far replications under --runs are")
    other.add_argument("--collect", action="store_true", help="cards under --runs into this checkout")
    other.add_argument("--docs", action="store_true", help="write the documents that are made of cards")
    parser.add_argument("--json", action="store_true", help="--list and --status as JSON")
    parser.add_argument("--force", action="store_true", help="--collect: replace cards that have more seeds")
    options = parser.parse_intermixed_args(arguments)
    register_all()
    from metalearn.replicate import replicate, tell

    overrides = [name for name in options.names if "=" in name]
    names = [name for name in options.names if "=" not in name]
    if not (options.list or options.status or options.collect or options.docs):
        return replicate(names, overrides, options.seeds, options.jobs, Path(options.runs))
    return tell(options, names, overrides)


def _diagnose(arguments: list[str]) -> int:
    parser = _parser(
        "diagnose", "Writes diagnose.csv, .md, .json, .svg and .png into runs/diagnose/ or --output."
    )
    parser.add_argument("what", metavar="hypergradient")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE",
        help="problem=NAME or problem=all, estimators=a,b,c, situations, draws, warmup, repeats; "
        "others are overrides of the run",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, help="instead of a problem: a run directory's checkpoint")
    parser.add_argument("--output", type=Path, help="a new folder for the files")
    options = parser.parse_intermixed_args(arguments)
    if options.what != "hypergradient":
        raise UserError(f"diagnose: got {options.what!r}; what can be diagnosed is: hypergradient")
    register_all()
    from metalearn.launch import explained

    with explained(options.settings):
        from metalearn.diagnose.command import diagnose

        diagnose(options.settings, options.run, options.output, ["metalearn", "diagnose", *arguments])
    return 0


def _report(arguments: list[str]) -> int:
    parser = _parser("report", "Writes report.md and report.html into each run directory.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    from metalearn import report

    for run in parser.parse_intermixed_args(arguments).runs:
        report.run(run)
    return 0


def _compare(arguments: list[str]) -> int:
    parser = _parser(
        "compare",
        "Prints a table (with tabs where stdout is no terminal); --output also writes compare.csv, "
        "compare.md and compare.html.",
    )
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="RUN",
        help="run directories, folders that hold some, offline W&B folders",
    )  # fmt: skip
    parser.add_argument("--group", help="runs of a W&B group or name; * and ? match anything")
    parser.add_argument("--runs", default="runs", help="the folder that --group looks in (default: runs)")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT[/GROUP]", help="runs at W&B; needs its key")
    parser.add_argument(
        "--metric", action="append", default=[], help="in tables and tests; may be given again "
        "(default: what train.monitor names, and tests)",
    )  # fmt: skip
    parser.add_argument("--baseline", help="the configuration that others are held against; else the first")
    parser.add_argument("--output", type=Path, help="folder for the files")
    options = parser.parse_intermixed_args(arguments)
    from metalearn.compare import Sources, compare

    sources = Sources(options.places, options.group, Path(options.runs), options.wandb)
    compare(sources, options.metric, options.baseline, options.output)
    return 0


def _publish(arguments: list[str]) -> int:
    parser = _parser("publish", "What was sent before is left out. No other command sends what is here.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, or folders that hold some"
    )
    parser.add_argument("--project", help="at W&B (default: what the runs' configuration names)")
    parser.add_argument("--entity", help="user or team at W&B (default: the runs' own, then the key's)")
    parser.add_argument("--report", metavar="TITLE", help="also build a report; needs the extra reports")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    options = parser.parse_intermixed_args(arguments)
    from metalearn.compare.publish import Request, publish

    publish(Request(options.runs, options.project, options.entity, options.report, options.dry_run))
    return 0


def _export(arguments: list[str]) -> int:
    parser = _parser("export", "Writes RUN/export/ from the run's checkpoint.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, help="another folder than RUN/export")
    options = parser.parse_intermixed_args(arguments)
    register_all()
    from metalearn.export import export

    for path in export(options.run, options.output or options.run / "export"):
        print(path)
    return 0


def _sample(arguments: list[str]) -> int:
    parser = _parser("sample", "The same seed gives the same sample. Pictures go into RUN/samples/.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--text", help="what a language model goes on with, or what is to be translated")
    parser.add_argument("--length", type=int, help="symbols, or moves of the pen")
    parser.add_argument("--temperature", type=float, help="1 (default): the model itself; 0: the likeliest")
    parser.add_argument("--seed", type=int, help="of the draws (default: 0)")
    parser.add_argument("--count", type=int, help="how many (default: 1; 5 test sentences)")
    parser.add_argument("--output", type=Path, help="another folder than RUN/samples")
    options = parser.parse_intermixed_args(arguments)
    register_all()
    from metalearn.sample import Request, sample, shown

    request = Request(options.text, options.length, options.temperature, options.seed, options.count)
    made = sample(options.run, request, options.output or options.run / "samples")
    print("\n\n".join(map(shown, made.texts)), end="\n" if made.texts else "")
    for path in made.files:
        print(path, file=sys.stderr if made.texts else sys.stdout)
    return 0


def _list(arguments: list[str]) -> int:
    parser = _parser("list", "What a configuration may name.")
    parser.add_argument("what", metavar="|".join(LISTS))
    parser.add_argument("--runs", default="runs", help="the folder of run directories (default: runs)")
    parser.add_argument("--data-dir", default=os.environ.get("METALEARN_DATA_DIR", "data"))
    options = parser.parse_intermixed_args(arguments)
    if options.what not in LISTS:
        raise UserError(
            f"no list is called {options.what!r}; choose one of: "
            + ", ".join(closest(options.what, list(LISTS)))
        )
    register_all()
    from metalearn import listing

    listing.show(options.what, Path(options.runs), Path(options.data_dir).expanduser())
    return 0


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    about = COMMANDS[command]
    return Parser(prog=f"metalearn {command}", description=f"{about[0].upper()}{about[1:]}. {text}")
