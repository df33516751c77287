"""The end of workers by signals."""

import os
import signal
from collections.abc import Callable

import pytest

from metalearn.registry import UserError
from metalearn.workers import stoppable


def work(body: Callable[[], object], ended: list[bool]) -> None:
    """A body of work whose end is disturbed."""
    with stoppable() as innermost:
        try:
            with innermost():
                body()
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append(True)


@pytest.fixture(autouse=True)
def heard():
    """SIGINT, which a shell's background job, as CI may be, ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_further_signals_do_not_cut_the_end_of_workers_short(first):
    """Else a worker waits for its next job for ever, and the launch for it."""
    before, ended = signal.getsignal(signal.SIGINT), []
    with pytest.raises(UserError, match="same command goes on") as stopped:
        work(lambda: os.kill(os.getpid(), first), ended)
    assert ended
    assert stopped.value.exit_code == 128 + first
    assert signal.getsignal(signal.SIGINT) is before


def test_the_end_after_a_failure_is_not_cut_short_either():
    ended: list[bool] = []
    with pytest.raises(ZeroDivisionError):
        work(lambda: 1 / 0, ended)
    assert ended
