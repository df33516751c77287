"""Batches whose parts threads compute, before they are asked for where that can be foreseen."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Work = Callable[[int], Sequence[Callable[[], Tensor]]]  # what makes each row of batch `index`
Rows = list[Future[Tensor]]


class Ahead:
    """Stacks the rows of numbered batches; of each stream the next `ahead` batches are under way meanwhile.

    What a batch holds depends on its stream and number alone; only the time that it takes depends on what was
    asked for before. A stream goes on by the step that its last two numbers were apart.
    """

    def __init__(self, threads: int, ahead: int) -> None:
        self.pool, self.ahead = ThreadPoolExecutor(threads, "decode"), ahead
        self.pending: dict[str, dict[int, Rows]] = {}
        self.last: dict[str, int] = {}

    def get(self, stream: str, index: int, work: Work, end: int | None = None) -> Tensor:
        """Batch `index` of the stream, whose numbers are below `end`."""
        pending = self.pending.setdefault(stream, {})
        rows = pending.pop(index, None) or self._started(index, work)
        foreseen = self._foreseen(stream, index, end)
        for other in [number for number in pending if number not in foreseen]:
            for row in pending.pop(other):
                row.cancel()
        for number in foreseen:
            if number not in pending:
                pending[number] = self._started(number, work)
        return torch.stack([row.result() for row in rows])

    def _started(self, index: int, work: Work) -> Rows:
        return [self.pool.submit(row) for row in work(index)]

    def _foreseen(self, stream: str, index: int, end: int | None) -> list[int]:
        stride = max(1, index - self.last.get(stream, index - 1))
        self.last[stream] = index
        numbers = [index + stride * count for count in range(1, self.ahead + 1)]
        return [number for number in numbers if end is None or number < end]
