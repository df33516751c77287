"""`metalearn train -m ...`: a sweep from its command line to its table."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from metalearn.registry import UserError
from metalearn.sweep import tables
from metalearn.sweep.build import build_strategy
from metalearn.sweep.definition import Sweep
from metalearn.sweep.engine import Engine
from metalearn.sweep.executor import Executor
from metalearn.sweep.folder import held
from metalearn.sweep.reading import read

Build = Callable[[Sweep], Executor]


class _StopError(Exception):
    """SIGTERM reached the launch."""


def sweep(arguments: Sequence[str], dry: bool = False, build: Build | None = None) -> int:
    """Run a sweep to its end, or say what it would run; 0 if all runs have one. Raises UserError.

    A message with exit code 143 or 130 after SIGTERM or Ctrl-C: all runs have made a checkpoint.
    """
    asked = read(arguments)
    if dry:
        from metalearn.sweep.dry_run import told

        print(told(asked))
        return 0
    with held(asked) as folder, _stoppable(), (build or _executor)(asked) as executor:
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
    from metalearn.sweep.executors import build_executor, launcher_options

    return build_executor(launcher_options(asked.launcher), asked.folder)


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within the block SIGTERM and Ctrl-C end the launch by one message."""

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut short the end of the workers
        raise _StopError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except (KeyboardInterrupt, _StopError) as error:
        stopped = UserError("stopped after a checkpoint of every run; the same command goes on from there")
        stopped.exit_code = 143 if isinstance(error, _StopError) else 130
        raise stopped from None
    finally:
        signal.signal(signal.SIGTERM, before)
