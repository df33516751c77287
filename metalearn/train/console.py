"""What a run says to the terminal: messages, and a bar or plain lines for its progress."""

import sys
import time
from types import TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal for a bar


def say(text: str) -> None:
    """One message on stderr, above the progress bar where there is one."""
    line = f"metalearn: {text}"
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """Rate, time left and loss: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, total: int, step: int, enabled: bool) -> None:
        self._total, self._step, self._enabled = total, step, enabled
        self._loss = ""
        self._since, self._since_step = time.perf_counter(), step
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=step, unit="step", file=sys.stderr, dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Say that `step` steps are done."""
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step
        seconds = time.perf_counter() - self._since
        if self._enabled and self._bar is None and seconds >= SECONDS_BETWEEN_LINES:
            self._line(seconds)

    def show(self, row: dict[str, float]) -> None:
        """Take the loss to show from a row of metrics: its first loss, or its first metric."""
        names = [name for name in row if name != "step"]
        name = next((name for name in names if name.endswith("loss")), names[0] if names else None)
        if name is None:
            return
        self._loss = f"{name} {row[name]:.4g}"
        if self._bar is not None:
            self._bar.set_postfix_str(self._loss, refresh=False)

    def _line(self, seconds: float) -> None:
        rate = (self._step - self._since_step) / seconds
        left = _clock((self._total - self._step) / rate) if rate else "?"
        say(
            f"step {self._step}/{self._total}, {rate:.3g} steps/s, {left} left, {self._loss or 'no loss yet'}"
        )
        self._since, self._since_step = time.perf_counter(), self._step

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
