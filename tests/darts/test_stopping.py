"""The rule that sees a rise, and rules without anything to look at."""

import dataclasses

import pytest

import tasks  # noqa: F401
from metalearn.compose import compose
from metalearn.darts.stopping import Rise, check, rise
from metalearn.registry import UserError


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ([1.0, 1.0, 9.0], None),  # two windows of 2 need 4
        ([1.0, 2.0, 2.0, 2.0], None),  # 1.5 / 2 is 0.75, not below it
        ([1.0, 1.9, 2.0, 2.0], Rise(1.45, 2.0)),
        ([9.0, 9.0, 1.0, 1.0, 2.0, 2.0], Rise(1.0, 2.0)),  # the last windows count
        ([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], None),
        ([-1.0, -1.0, 1.0, 1.0], Rise(-1.0, 1.0)),
        ([-2.0, -2.0, -1.0, -1.0], None),  # no mean above 0: nothing is sharp
    ],
)
def test_rise(eigenvalues, expected):
    assert rise(eigenvalues, window=2, ratio=0.75) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["stopping.kind=skips", "monitor.every=0"], "stopping.kind=skips: got method.monitor.every=0"),
        (["stopping.kind=eigenvalue", "monitor.eigenvalue=none"], "got method.monitor.eigenvalue=none"),
        (["regularisation.weight_decay=adaptive", "monitor.every=0"], "adaptive: got method.monitor.every=0"),
        (["regularisation.weight_decay=adaptive", "monitor.eigenvalue=none"], "choose lanczos or power"),
        (["stopping.kind=skips"], "this space has no normal cell"),
    ],
)
def test_rules_with_nothing_to_look_at_are_refused(changes, message):
    lines = ["method.monitor.every=2", *(f"method.{line}" for line in changes)]
    options = compose(["method=darts", "network=darts_supernet", "task=digits", *lines]).method
    with pytest.raises(UserError, match=message):
        check(options, {} if "normal cell" in message else {"normal": ...})  # type: ignore[dict-item]


def test_skips_need_no_eigenvalue():
    options = compose(["method=darts", "network=darts_supernet", "task=digits"]).method
    options.monitor = dataclasses.replace(options.monitor, every=2, eigenvalue="none")
    options.stopping = dataclasses.replace(options.stopping, kind="skips")
    check(options, {"normal": ...})  # type: ignore[dict-item]
