"""The functions that the optimizers of this folder are given, the same ones to each."""

from collections.abc import Iterator

from metalearn.learned_optimizers.black_box.config import QueriedOptions
from metalearn.registry import UserError
from metalearn.task import Batch, Queried, Split, Task


def queried(task: Task, options: QueriedOptions) -> Queried:
    """`task`, if its functions can be asked `horizon` times, point by point. Raises UserError."""
    if not isinstance(task, Queried):
        raise UserError(
            f"task {task.spec.name}: its functions cannot be asked point by point on a unit box; choose "
            "task=gaussian_process, branin, goldstein_price, hartmann3 or hartmann6"
        )
    most = task.most_queries
    if most is not None and options.horizon > most:
        raise UserError(
            f"method.horizon: got {options.horizon}, but a function of task {task.spec.name} may be asked "
            f"{most} times; lower method.horizon or raise task.queries"
        )
    return task


def fresh(task: Task, split: Split, count: int) -> Iterator[Batch]:
    """The first `count` functions of a split, batch by batch."""
    index = 0
    while count > 0:
        x, y, key = task.batch(split, index)
        yield Batch(x[:count], y[:count], key)
        count, index = count - len(x), index + 1


def single(task: Task, split: Split, number: int) -> Batch:
    """One of them, as a batch of one."""
    index, row = divmod(number, len(task.batch(split, 0).x))
    x, y, key = task.batch(split, index)
    return Batch(x[row : row + 1], y[row : row + 1], key)
