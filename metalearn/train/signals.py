"""Signals that ask a run to stop."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from metalearn.train.console import say
from metalearn.train.failure import Interrupted

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
WARNING = signal.SIGUSR1  # of schedulers, often beside a SIGTERM: neither of the two is a second request


class Signals:
    """Within the block SIGTERM, SIGINT and SIGUSR1 only note that they came; a second one exits at once,
    unless one of the two is SIGUSR1, a scheduler's warning.

    The loop looks at `received` between steps. Outside the main thread Python can catch no signals, and
    nothing is done.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number)
        if self.received not in (None, number) and WARNING in (self.received, number):
            return
        if self.received is not None:
            raise Interrupted(number, f"{name.name} after {self.received.name}: left at once")
        self.received = name
        if not self.quiet:
            say(f"{name.name}: stopping after this step or evaluation; a second signal stops at once")
