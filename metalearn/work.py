"""One run as a job of others: what a worker does, wherever it is, and how it tells the end."""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from metalearn.registry import UserError

# of a W&B agent that started the jobs together: each is a W&B run of its own, none takes the agent's id
AGENTS = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


class Outcome(NamedTuple):
    """How a job ended."""

    state: str  # finished, stopped (at train.stop_at), failed, diverged, interrupted, skipped
    message: str
    seconds: float
    mistake: bool = False  # in the configuration: another try ends the same


def work(overrides: Sequence[str]) -> Outcome:
    """Run one configuration in this process. Never raises: the jobs beside it go on."""
    from metalearn.cli import register_all
    from metalearn.launch import checked, run_one
    from metalearn.train.files import read_json
    from metalearn.train.run_directory import STATUS

    register_all()
    for name in AGENTS:
        os.environ.pop(name, None)
    started = time.monotonic()

    def ended(state: str, message: str = "") -> Outcome:
        return Outcome(state, message, time.monotonic() - started)

    try:
        run = run_one(checked(overrides), ["metalearn", "train", *overrides])
        return ended("finished" if run is None else read_json(run / STATUS)["state"])
    except UserError as error:
        outcome = ended(getattr(error, "state", "failed"), str(error))
        return outcome._replace(mistake=error.exit_code == UserError.exit_code)
    except SystemExit:
        return ended("interrupted")
    except Exception as error:  # a defect of ours: the other runs go on
        return ended("failed", f"{type(error).__name__}: {error}")
