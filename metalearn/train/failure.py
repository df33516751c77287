"""The ways a run ends early; `state` is what status.json says of it."""

from metalearn.registry import UserError


class Diverged(UserError):  # noqa: N818
    """A value that must be finite is not."""

    state = "diverged"
    exit_code = 3


class OutOfMemory(UserError):  # noqa: N818
    """The device or the host has no memory left."""

    state = "failed"
    exit_code = 1


class Interrupted(SystemExit):
    """A signal ended the run after a checkpoint; the process exits with 128 + its number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(128 + signal_number)
        self.message = message


def remedy(diverged: str) -> str:
    """What to try against a divergence of which this is the message."""
    if "hypergradient/residual" in diverged:
        return "lower hypergradient.step (neumann) or raise hypergradient.damping"
    return "lower a learning rate or clip gradients"


def state_of(error: BaseException) -> str:
    """failed, diverged or interrupted."""
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "interrupted"
    return getattr(error, "state", "failed")


def exit_code_of(error: BaseException | None) -> int:
    """What the process should end with: 0 done, 1 failed, 3 diverged, 128 + n stopped by signal n."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 0 if error is None else getattr(error, "exit_code", 1)
