"""What data and logging take of a step, for one quick-start recipe of each family.

`uv run python -m benchmarks.overhead [--save]`. A row is CALLS steps, the batches that these steps read, or
the watch and the rows that the loop writes for them. Goal: batches and rows together under 3 % of a step.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import measure, report
from metalearn.build import build
from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.task import Split
from metalearn.train.log import Log, Watch, host
from metalearn.train.run_directory import open_run

CALLS = 10
RECIPES = ("darts_digits_search", "hyperlstm_python_docs_hyperlstm", "l2l_digits_lstm")


def contenders(recipe: str, folder: Path) -> dict[str, Callable[[], object]]:
    """The three rows of a recipe."""
    overrides = [
        f"recipe=quickstart/{recipe}",
        f"run_dir={folder / recipe}",
        "machine=cpu",
        "log.progress=false",
    ]
    config = compose(overrides)
    method, task = (parts := build(config)).method, parts.task
    log = Log(config, open_run(config, command=[]))
    log.__enter__()
    log.start(0, 0)
    metrics, count = method.step(0), itertools.count(1)
    splits: tuple[Split, ...] = ("search_train", "search_valid") if "darts" in recipe else ("train",)
    reads = method.options.unroll if isinstance(method, MetaTraining) else 1

    def steps() -> None:
        for index in range(CALLS):
            method.step(index)

    def batches() -> None:
        for index in range(CALLS * reads):
            for split in splits:
                task.batch(split, index)

    def rows() -> None:
        watch = Watch()
        for index in itertools.islice(count, CALLS):
            watch.see(index, metrics)
            if index % config.train.log_every == 0:
                log.write(index, host(metrics))
            log.step_done(index)

    return {f"{recipe}: steps": steps, f"{recipe}: batches": batches, f"{recipe}: rows": rows}


def main() -> None:
    """All recipes in one process."""
    register_all()
    with tempfile.TemporaryDirectory() as folder:
        every = {name: call for recipe in RECIPES for name, call in contenders(recipe, Path(folder)).items()}
        table = measure(every)
    report(f"Overhead: {CALLS} steps, their batches, their rows (W&B offline)", table, "--save" in sys.argv)


if __name__ == "__main__":
    main()
