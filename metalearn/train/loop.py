"""The one training loop."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metalearn.config import Config
from metalearn.method import Method
from metalearn.processes import PeerLost, Processes
from metalearn.task import Metrics
from metalearn.train import checkpoint, monitoring, provenance
from metalearn.train.checkpoint import Checkpoints
from metalearn.train.console import say
from metalearn.train.failure import Diverged, Interrupted, OutOfMemory, remedy
from metalearn.train.log import Log, Watch, check_state, host
from metalearn.train.run_directory import RunDirectory, begun
from metalearn.train.signals import Signals

Probe = Callable[[Method, int], Metrics]


def run(
    config: Config,
    method: Method,
    directory: RunDirectory,
    describe: Callable[[Path], None] | None = None,
    probe: Probe | None = None,
    processes: Processes | None = None,
) -> str:
    """Train until the budget of steps or minutes is used up, then test; returns the final state: "finished",
    or "stopped" after a checkpoint at `train.stop_at`, from where the same run may go on later.

    `describe` is called with the finished run's directory, and may write its report there. `probe` is asked
    for more metrics before every `train.diagnose_every`-th step, and must leave the method as it is. With
    several `processes` this one leads; the others are in `follow`.

    Goes on from the newest sound checkpoint: the rows of metrics.jsonl then equal those of an unbroken run.
    At SIGTERM, SIGINT or SIGUSR1 it ends the step or evaluation at hand, writes a checkpoint, says how to go
    on and raises SystemExit(128 + signal): 143, 130, 138. Raises Diverged at a value that is not finite,
    OutOfMemory, PeerLost after a checkpoint, and UserError for a full disk or a metric that does not exist.
    """
    if directory.finished:
        return "finished"
    monitoring.check(config.train, method)
    directory.record(hardware=provenance.hardware())
    with Signals() as signals, Log(config, directory) as log:
        loop = _Loop(config, method, directory, signals, log, probe, processes or Processes())
        try:
            loop.restore()
            loop.train()
            if loop.stops:
                loop.leave_off()
                return "stopped"
            loop.finish()
            if describe is not None:
                describe(directory.path)
            log.upload(directory.path / "artifacts")
        except PeerLost as error:
            raise PeerLost(loop.after_loss(str(error))) from error
        except Diverged as error:
            raise Diverged(f"{error}; {loop.last_good()}; {remedy(str(error))}") from None
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"out of memory after step {directory.step}; lower the batch, the length of unrolls or the "
                "model, try machine.precision=bf16 or a first-order hypergradient"
            ) from error
    return "finished"


def follow(method: Method, processes: Processes) -> None:
    """Take part in the steps of a run that process 0 leads, until it says that there are no more.

    SIGTERM and SIGINT only note that they came: torchrun and terminals send them to every process, and the
    leader ends the run.
    """
    with Signals(quiet=True):
        step, state = processes.from_leader()
        if state:
            method.load_state_dict(state)
        while processes.from_leader():
            method.step(step)
            step += 1
        processes.end()


def dismiss(processes: Processes) -> None:
    """End `follow` in the other processes where there is nothing to do."""
    processes.from_leader((0, {}))
    processes.from_leader(False)
    processes.end()


class _Loop:
    """Where a run stands: the steps done, whether the last one's evaluation is done, the best so far."""

    def __init__(
        self,
        config: Config,
        method: Method,
        directory: RunDirectory,
        signals: Signals,
        log: Log,
        probe: Probe | None,
        processes: Processes,
    ) -> None:
        self.config, self.train_options = config, config.train
        self.method, self.directory, self.signals, self.log = method, directory, signals, log
        self.probe, self.processes, self.leading = probe, processes, False
        self.checkpoints = Checkpoints(directory.path / "checkpoints", config.train.keep)
        self.watch = Watch()
        self.step, self.evaluated = 0, True
        self.best: dict[str, Any] | None = None
        self.saved: tuple[int, bool] | None = None
        self.seconds_before, self.started = 0.0, time.perf_counter()

    def restore(self) -> None:
        """Take up the newest sound checkpoint, or begin."""
        restored, rows = self.checkpoints.newest(), 0
        if restored is None:
            checkpoint.seed_all(self.config.seed)
            if begun(self.directory.path):
                say(f"{self.directory.path}: no sound checkpoint, starting again from step 0")
        else:
            state = restored.state
            self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
            self.seconds_before, rows = state["seconds"], state["rows"]
            self.method.load_state_dict(state["method"])
            checkpoint.set_random_state(state["random"])
            self.saved = self.step, self.evaluated
            say(f"{self.directory.path}: going on after step {self.step}")
        self.directory.step = self.step
        if not self.log.start(self.step, rows):
            say(f"{self.directory.path}/metrics.jsonl lacks rows of before step {self.step}; they are lost")

    def train(self) -> None:
        """All steps that are left, with what is due after each."""
        options = self.train_options
        self.processes.from_leader((self.step, self.method.state_dict() if self.processes.size > 1 else {}))
        self.leading = True
        self._evaluate_if_due()
        while not self._done() and not self.stops:
            if self.probe is not None and self._due(options.diagnose_every):
                self.log.write(self.step, host(self.probe(self.method, self.step)))
            self.processes.from_leader(True)
            metrics = self.method.step(self.step)
            self.step += 1
            self.directory.step, self.evaluated = self.step, False
            self.watch.see(self.step, metrics)
            if self._due(options.log_every) or self.step == options.steps or self.method.ended:
                self.watch.check()
                self.log.write(self.step, host(metrics))
                self.log.write_time(self.step, self._seconds())
            self._stop_if_asked()
            self._evaluate_if_due()
            self.log.step_done(self.step)
            if self._due(options.checkpoint_every):
                self._save()
            self._stop_if_asked()
        self._dismiss()

    @property
    def stops(self) -> bool:
        """Whether the run is to leave off here although it is not done."""
        stop_at = self.train_options.stop_at
        return stop_at is not None and self.step >= stop_at and not self._done()

    def leave_off(self) -> None:
        """Checkpoint; the rows so far are those of a run that goes on."""
        self._save()
        self.directory.set_status("stopped", f"at train.stop_at={self.train_options.stop_at}")

    def finish(self) -> None:
        """Test what was selected, write the artifacts, and call the run finished."""
        options = self.train_options
        if options.evaluate_every and not self.evaluated:
            self._evaluate()
        self._save()
        selected = self._select()
        if options.test:
            self._stop_if_asked()
            self.log.write(self.step, {**host(self.method.evaluate("test")), **selected})
        self._stop_if_asked()
        artifacts = self.directory.path / "artifacts"
        artifacts.mkdir(exist_ok=True)
        self.method.artifacts(artifacts)
        early = self.step < options.steps
        reason = self.method.ended or f"after train.minutes={options.minutes}"
        self.directory.set_status("finished", reason if early else "")

    def after_loss(self, reason: str) -> str:
        """Checkpoint the last whole step after another process was lost; what to tell the user."""
        self._save()
        return f"{reason}; stopped after step {self.step}; to go on: {self.directory.resume_command()}"

    def _dismiss(self) -> None:
        """Tell the other processes that there are no more steps."""
        if self.leading:
            self.leading = False
            self.processes.from_leader(False)
            self.processes.end()

    def last_good(self) -> str:
        """Which checkpoint is left after a divergence."""
        if self.saved is None:
            return "there is no checkpoint before it"
        return f"the last good checkpoint is {self.checkpoints.path(self.saved[0])} of step {self.saved[0]}"

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _done(self) -> bool:
        return self.step >= self.train_options.steps or bool(self.method.ended) or self._out_of_time()

    def _out_of_time(self) -> bool:
        minutes = self.train_options.minutes
        return minutes is not None and self._seconds() >= 60 * minutes

    def _evaluate_if_due(self) -> None:
        last = self.step == self.train_options.steps and self.train_options.evaluate_every > 0
        if not self.evaluated and (last or self._due(self.train_options.evaluate_every)):
            self._evaluate()

    def _evaluate(self) -> None:
        self.watch.check()
        values = host(self.method.evaluate("valid"))
        self.log.write(self.step, values)
        self.evaluated = True
        if self._is_best(values):
            self._save(best=True)

    def _is_best(self, values: dict[str, float]) -> bool:
        monitor = self.train_options.monitor
        if monitor is None:
            return False
        if monitor not in values:
            raise monitoring.missing(monitor, values)
        sign = 1 if self.train_options.goal == "min" else -1
        if self.best is not None and sign * values[monitor] >= sign * self.best["value"]:
            return False
        self.best = {"step": self.step, "value": values[monitor]}
        return True

    def _save(self, best: bool = False) -> None:
        """Checkpoint this very moment, unless that is done. Raises Diverged rather than save NaN."""
        if self.saved == (self.step, self.evaluated) and not best:
            return
        self.watch.check()
        method = self.method.state_dict()
        check_state(self.step, method)
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "rows": self.log.synced_rows(),
            "seconds": self._seconds(),
            "best": self.best,
            "wandb_id": self.directory.wandb_id,
            "random": checkpoint.random_state(),
            "method": method,
        }
        self.checkpoints.save(state, best)
        self.saved = self.step, self.evaluated
        self.directory.set_status("running")

    def _stop_if_asked(self) -> None:
        signal = self.signals.received
        if signal is None:
            return
        self._save()
        self._dismiss()
        say(f"stopped by {signal.name} after step {self.step}; to go on: {self.directory.resume_command()}")
        raise Interrupted(signal, f"{signal.name} after step {self.step}")

    def _select(self) -> dict[str, float]:
        """Put the method where the final test and the artifacts want it; what the test row says of it."""
        if self.train_options.select == "last":
            return {}
        restored = self.checkpoints.best(self.best["step"]) if self.best else None
        if restored is None:
            say("train.select=best: there is no sound best checkpoint, the last step's is used")
            return {"selected/step": self.step}
        self.method.load_state_dict(restored.state["method"])
        return {"selected/step": restored.state["step"]}


def _is_out_of_memory(error: BaseException) -> bool:
    texts = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in str(error) for text in texts
    )
