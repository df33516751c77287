"""What a job of a cluster does when it is to make room: a checkpoint, then back into the queue."""

import os
import signal
from types import FrameType
from typing import Any

from metalearn.sweep.executors.task import Task, perform
from metalearn.work import Outcome

WARNING = signal.SIGUSR2  # submitit asks SLURM for it before the time limit, and at a preemption


class Preemptible:
    """`perform` for submitit. Its own handler would leave in the middle of a step; this one lets the loop
    make its checkpoint, as for SIGTERM, and then lets submitit put the job into the queue again."""

    def __call__(self, task: Task) -> Outcome:
        requeue = signal.getsignal(WARNING)
        warned: list[int] = []

        def note(number: int, _frame: FrameType | None) -> None:
            warned.append(number)
            os.kill(os.getpid(), signal.SIGUSR1)  # the loop stops at this one, and takes more of it for one

        signal.signal(WARNING, note)
        try:
            outcome = perform(task)
        finally:
            signal.signal(WARNING, requeue)
        if warned and outcome.state == "interrupted" and callable(requeue):
            requeue(WARNING, None)  # ends this process
        return outcome

    def checkpoint(self, task: Task) -> Any:
        """The job as it is queued again: its run directory has all that it needs."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Preemptible(), task)
