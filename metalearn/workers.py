"""Processes that do jobs one after another; the death of one costs its job alone."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing import connection, resource_tracker
from typing import Any

from metalearn.registry import UserError
from metalearn.train.console import say

Work = Callable[[Any], Any]  # importable by name: workers are fresh processes


class Worker:
    """One process, one thread of computation. It ends with its parent, whatever ends that."""

    def __init__(self, work: Work) -> None:
        self.channel, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        self.process = context.Process(target=_serve, args=(theirs, work, os.getpid()))
        with born_deaf():
            self.process.start()
        theirs.close()

    def give(self, job: Any) -> None:
        """Start a job; `take` has its result once `channel` is ready."""
        self.channel.send(job)

    def take(self) -> Any:
        """The result of the job, or None if the process died over it."""
        try:
            return self.channel.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return None


class Pool:
    """Up to `size` workers, started when there is something to do."""

    def __init__(self, size: int, work: Work) -> None:
        self.size, self.work = size, work
        self.idle: list[Worker] = []
        self.busy: dict[Worker, Any] = {}  # and their jobs' names

    @property
    def full(self) -> bool:
        return len(self.busy) == self.size

    def start(self, name: Any, job: Any) -> None:
        """Give a job to an idle worker or a new one."""
        worker = self.idle.pop() if self.idle else Worker(self.work)
        worker.give(job)
        self.busy[worker] = name

    def ended(self) -> Iterator[tuple[Any, Any]]:
        """Wait for jobs to end: their names and results, None for a worker that died."""
        by_channel = {worker.channel: worker for worker in self.busy}
        for channel in connection.wait(list(by_channel)):
            worker = by_channel[channel]  # type: ignore[index]
            result = worker.take()
            name = self.busy.pop(worker)
            if result is not None:
                self.idle.append(worker)
            yield name, result

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        """Let all workers end: busy ones are asked to by SIGTERM, once, and checkpoint first."""
        for worker in self.busy:
            worker.process.terminate()
        for worker in [*self.busy, *self.idle]:
            worker.channel.close()
            worker.process.join()


def _serve(channel: connection.Connection, work: Work, parent: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    end_with_parent(parent)
    with contextlib.suppress(EOFError, OSError):
        while True:
            channel.send(work(channel.recv()))


class _StopError(KeyboardInterrupt):  # packages that swallow or turn Exceptions (Ray) let it through
    """A signal reached the parent."""


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A block that SIGTERM and Ctrl-C end by one UserError.

    It has a context for its innermost part. From the end of that, or the first signal, on both are ignored:
    one that cuts the end of the workers short leaves some that wait for ever, and this process for them.
    """

    def stop(number: int, _frame: object) -> None:
        _set(dict.fromkeys(before, signal.SIG_IGN))
        received.append(number)
        said = "ending after a checkpoint of every run; to end without"
        say(f"{signal.Signals(number).name}: {said}: kill -9 {os.getpid()}")
        raise _StopError

    @contextlib.contextmanager
    def innermost() -> Iterator[None]:
        try:
            yield
        finally:
            _set(dict.fromkeys(before, signal.SIG_IGN))

    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = {number: handler for number, handler in found.items() if handler not in (None, signal.SIG_IGN)}
    received: list[int] = []
    try:
        _set(dict.fromkeys(before, stop))
        yield innermost
    except BaseException as error:
        if not received and not isinstance(error, KeyboardInterrupt):
            raise
        stopped = UserError("stopped after a checkpoint of every run; the same command goes on from there")
        stopped.exit_code = 128 + (received[0] if received else signal.SIGINT)
        raise stopped from None
    finally:
        _set(before)


def _set(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def born_deaf() -> Iterator[None]:
    """Processes that begin here hear no Ctrl-C until `end_with_parent` has taken them off the terminal."""
    resource_tracker.ensure_running()  # its own start would let SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: int) -> None:
    """Leave the parent's terminal, and be sent SIGTERM when the parent is gone, whatever ends it."""
    os.setsid()  # Ctrl-C on the terminal reaches the parent, which tells the workers once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # forgets one that came before
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit
