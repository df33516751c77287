"""`metalearn train -m ...`: a sweep from its command line to its table."""

import time
from collections.abc import Callable, Sequence

from metalearn.registry import UserError
from metalearn.sweep import tables
from metalearn.sweep.build import build_strategy
from metalearn.sweep.definition import Sweep
from metalearn.sweep.engine import Engine
from metalearn.sweep.executor import Executor
from metalearn.sweep.executors import build_executor, launcher_options
from metalearn.sweep.folder import held
from metalearn.sweep.reading import read
from metalearn.workers import stoppable

Build = Callable[[Sweep], Executor]


def sweep(arguments: Sequence[str], dry: bool = False, build: Build | None = None) -> int:
    """Run a sweep to its end, or say what it would run; 0 if all runs have one. Raises UserError.

    A message with exit code 143 or 130 after SIGTERM or Ctrl-C: all runs have made a checkpoint.
    """
    asked = read(arguments)
    launcher_options(asked.launcher)
    if dry:
        from metalearn.sweep.dry_run import told

        print(told(asked))
        return 0
    make = build or _executor
    with held(asked) as folder, stoppable() as innermost, make(asked) as executor, innermost():
        engine = Engine(asked, build_strategy(asked, folder), lambda t: tables.write(asked, t), _say)
        _say(f"sweep {folder}: up to {executor.width} runs at a time")
        started = time.monotonic()
        engine.run(executor)
    trials = engine.trials
    print(tables.shown(asked, trials))
    print(f"{len(trials) * len(asked.seeds)} runs, {time.monotonic() - started:.0f} s in this launch")
    missing = tables.failures(asked, trials)
    if missing:
        lines = [f"{len(missing)} jobs of the sweep failed; the same command tries them again:", *missing]
        failed = UserError("\n  ".join(lines))
        failed.exit_code = 1
        raise failed
    return 0


def _executor(asked: Sweep) -> Executor:
    return build_executor(launcher_options(asked.launcher), asked.folder)


def _say(text: str) -> None:
    print(text, flush=True)
